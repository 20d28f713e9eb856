package cni

import "strings"

// The checks of names are written out rather than as regular expressions, because the plugin would compile those at
// each of its starts.

// dressed says whether s is 1 to most bytes long, begins and ends with a letter or digit, and has only letters,
// digits and bytes of marks between. Upper-case letters count only if upper is set.
func dressed(s string, most int, marks string, upper bool) bool {
	if s == "" || len(s) > most || !alphanumeric(s[0], upper) || !alphanumeric(s[len(s)-1], upper) {
		return false
	}
	for i := range len(s) {
		if !alphanumeric(s[i], upper) && strings.IndexByte(marks, s[i]) < 0 {
			return false
		}
	}
	return true
}

// alphanumeric is about bytes: a letter outside ASCII is none in any of these names.
func alphanumeric(c byte, upper bool) bool {
	return 'a' <= c && c <= 'z' || '0' <= c && c <= '9' || upper && 'A' <= c && c <= 'Z'
}

// validIdentifier is the alphabet of container ids and network names (section 2).
func validIdentifier(s string) bool {
	const most = 255 // a file name
	return s != "" && dressed(s+"0", most+1, "_.-", true)
}

// validObject is a name of a Kubernetes object (RFC 1123 subdomain).
func validObject(s string) bool { return dressed(s, 253, ".-", false) }

// validContainer is a name of a pod or its namespace as any runtime may spell it: podman gives containers names such as
// Quiet_Fox, and Kubernetes' own names are among these.
func validContainer(s string) bool { return dressed(s, 253, "._-", true) }

// validPortName is a name of a container port (RFC 6335).
func validPortName(s string) bool { return dressed(s, 15, "-", false) }

// validLabelKey is a name with an optional DNS prefix.
func validLabelKey(s string) bool {
	if prefix, name, found := strings.Cut(s, "/"); found {
		return validObject(prefix) && dressed(name, 63, "_.-", true)
	}
	return dressed(s, 63, "_.-", true)
}

// validLabelValue is a label's value, which may be empty.
func validLabelValue(s string) bool { return s == "" || dressed(s, 63, "_.-", true) }
