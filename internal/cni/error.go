package cni

import (
	"errors"
	"fmt"
)

// Code is an error code of the CNI (section 5, "Error").
type Code uint

// The codes that the specification reserves, and one of our own.
const (
	CodeIncompatibleVersion Code = 1
	CodeUnsupportedField    Code = 2
	CodeUnknownContainer    Code = 3
	CodeInvalidEnvironment  Code = 4
	CodeIO                  Code = 5
	CodeDecode              Code = 6
	CodeInvalidConfig       Code = 7
	CodeTryAgainLater       Code = 11
	CodeUnavailable         Code = 50  // ADD cannot be served
	CodeInternal            Code = 100 // the first that plugins may define
)

// Error is what a runtime is told when a command did not succeed.
type Error struct {
	Code    Code   `json:"code"`
	Message string `json:"msg"`
	Details string `json:"details,omitempty"`
}

func (e *Error) Error() string {
	if e.Details == "" {
		return e.Message
	}
	return e.Message + ": " + e.Details
}

// Errorf makes an error with a code. Details are the text after the message.
func Errorf(code Code, message, format string, args ...any) *Error {
	return &Error{Code: code, Message: message, Details: fmt.Sprintf(format, args...)}
}

// AsError returns the CNI error that err is or wraps; anything else is an internal error of the plugin.
func AsError(err error) *Error {
	var known *Error
	if errors.As(err, &known) {
		return known
	}
	return &Error{Code: CodeInternal, Message: "tendril", Details: err.Error()}
}
