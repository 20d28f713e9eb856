package label

import (
	"fmt"
	"strings"
)

// Limits of Kubernetes' label syntax, in bytes.
const (
	maxName   = 63
	maxPrefix = 253
	maxValue  = 63
	maxFact   = 253 // service accounts are DNS subdomains
)

// Validate checks one label by Kubernetes' rules: a key is an optional DNS subdomain and "/" before a name of at most
// 63 letters, digits, "-", "_" and ".", with a letter or digit at both ends; a value is such a name, or empty.
func Validate(key, value string) error {
	if err := ValidateKey(key); err != nil {
		return err
	}
	return validateValue(key, value, maxValue)
}

// ValidateKey checks a label's key alone.
func ValidateKey(key string) error {
	prefix, name, prefixed := strings.Cut(key, "/")
	if !prefixed {
		name = key
	} else if err := validatePrefix(key, prefix); err != nil {
		return err
	}
	switch {
	case name == "":
		return fmt.Errorf("label key %q: the name is empty", key)
	case len(name) > maxName:
		return fmt.Errorf("label key %q: the name has %d bytes, at most %d are allowed", key, len(name), maxName)
	case !isName(name):
		return fmt.Errorf("label key %q: the name may hold letters, digits, '-', '_' and '.', "+
			"and must begin and end with a letter or digit", key)
	}
	return nil
}

func validatePrefix(key, prefix string) error {
	if prefix == "" {
		return fmt.Errorf("label key %q: the prefix before '/' is empty", key)
	}
	if len(prefix) > maxPrefix {
		return fmt.Errorf("label key %q: the prefix has %d bytes, at most %d are allowed", key, len(prefix), maxPrefix)
	}
	for part := range strings.SplitSeq(prefix, ".") {
		if !isDNSLabel(part) {
			return fmt.Errorf("label key %q: the prefix %q is not a DNS subdomain in lower case", key, prefix)
		}
	}
	return nil
}

func validateValue(key, value string, limit int) error {
	if len(value) > limit {
		return fmt.Errorf("label %s: the value has %d bytes, at most %d are allowed", key, len(value), limit)
	}
	if value != "" && !isName(value) {
		return fmt.Errorf("label %s: the value %q may hold letters, digits, '-', '_' and '.', "+
			"and must begin and end with a letter or digit", key, value)
	}
	return nil
}

// isName says whether s is letters, digits, '-', '_' and '.', with a letter or digit at both ends.
func isName(s string) bool {
	for i := range len(s) {
		if !isAlphanumeric(s[i]) && s[i] != '-' && s[i] != '_' && s[i] != '.' {
			return false
		}
	}
	return s != "" && isAlphanumeric(s[0]) && isAlphanumeric(s[len(s)-1])
}

// isDNSLabel is RFC 1123's label, in lower case.
func isDNSLabel(s string) bool {
	for i := range len(s) {
		c := s[i]
		if (c < 'a' || c > 'z') && (c < '0' || c > '9') && c != '-' {
			return false
		}
	}
	return s != "" && s[0] != '-' && s[len(s)-1] != '-'
}

func isAlphanumeric(c byte) bool {
	return c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9'
}
