package cni

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// Command is what the runtime asks for.
type Command string

// The commands.
const (
	Add     Command = "ADD"
	Del     Command = "DEL"
	Check   Command = "CHECK"
	Status  Command = "STATUS"
	GC      Command = "GC"
	Version Command = "VERSION"
)

// Raw is a request as the runtime made it: what goes over the wire.
type Raw struct {
	Command     Command `json:"command"`
	ContainerID string  `json:"container_id,omitempty"`
	IfName      string  `json:"if_name,omitempty"`
	Args        string  `json:"args,omitempty"` // CNI_ARGS
	NetnsPath   string  `json:"netns_path,omitempty"`
	Stdin       []byte  `json:"stdin,omitempty"` // network configuration
}

// Request is a request that was parsed and found valid.
type Request struct {
	Command     Command
	ContainerID string
	IfName      string
	NetnsPath   string   // may be empty with DEL: the namespace is gone
	Netns       *os.File // open namespace; nil if NetnsPath is empty or could not be opened
	Args        Args
	Config      Config
}

// Attachment names what ADD makes: one device of one container.
type Attachment struct {
	ContainerID string `json:"containerID"`
	IfName      string `json:"ifname"`
}

// Attachment is the one that the request is about.
func (r *Request) Attachment() Attachment { return Attachment{r.ContainerID, r.IfName} }

// FromEnvironment reads a request's environment (section 2, "Parameters").
func FromEnvironment(getenv func(string) string, stdin []byte) Raw {
	return Raw{
		Command:     Command(getenv("CNI_COMMAND")),
		ContainerID: getenv("CNI_CONTAINERID"),
		IfName:      getenv("CNI_IFNAME"),
		Args:        getenv("CNI_ARGS"),
		NetnsPath:   getenv("CNI_NETNS"),
		Stdin:       stdin,
	}
}

// Parse validates a raw request. Every error is an *Error that names the parameter and says what to do.
func (r *Raw) Parse() (*Request, error) {
	if err := r.validate(); err != nil {
		return nil, err
	}
	config, err := ParseConfig(r.Stdin)
	if err != nil {
		return nil, err
	}
	if err := config.supports(r.Command); err != nil {
		return nil, err
	}
	args, err := parseArgs(r.Args, config)
	if err != nil {
		if r.Command != Del {
			return nil, err
		}
		args = Args{} // what ADD refused for its arguments can be deleted all the same: its names are enough
	}
	return &Request{
		Command: r.Command, ContainerID: r.ContainerID, IfName: r.IfName, NetnsPath: r.NetnsPath,
		Args: args, Config: *config,
	}, nil
}

// needs says which parameters a command cannot do without.
type needs struct{ attachment, netns bool }

// validate checks the environment by what the command needs (section 2). A path that is given but not needed must be
// sound all the same: the plugin opens it as root.
func (r *Raw) validate() error {
	required := map[Command]needs{
		Add: {attachment: true, netns: true}, Del: {attachment: true}, Check: {attachment: true, netns: true},
		Status: {}, GC: {}, Version: {},
	}
	need, known := required[r.Command]
	if !known {
		return environment("CNI_COMMAND", r.Command, "use ADD, DEL, CHECK, STATUS, GC or VERSION")
	}
	if need.attachment {
		if err := r.validateAttachment(); err != nil {
			return err
		}
	}
	switch {
	case need.netns && r.NetnsPath == "":
		return environment("CNI_NETNS", "", "give the path of the container's network namespace")
	case r.NetnsPath != "" && !filepath.IsAbs(r.NetnsPath):
		return environment("CNI_NETNS", r.NetnsPath, "give an absolute path")
	}
	return nil
}

// validateAttachment checks the two names that make an attachment. IfName becomes a name in the kernel and a part of
// paths below /proc/sys; '%' would have the kernel choose a number.
func (r *Raw) validateAttachment() error {
	if !validIdentifier(r.ContainerID) {
		return environment("CNI_CONTAINERID", r.ContainerID,
			"start with a letter or digit, then letters, digits, '_', '.' or '-', at most 255 bytes")
	}
	const maxIfName = 15 // IFNAMSIZ less the final zero, linux/if.h
	switch {
	case r.IfName == "" || len(r.IfName) > maxIfName, r.IfName == ".", r.IfName == "..",
		strings.ContainsAny(r.IfName, "/: \t\r\n\v\f%\x00"), !printable(r.IfName):
		return environment("CNI_IFNAME", r.IfName, "use 1 to 15 printable characters without '/', ':', '%' and space")
	case r.IfName == "lo":
		return environment("CNI_IFNAME", r.IfName, "lo is the loopback device; use another name, such as eth0")
	}
	return nil
}

// printable says that a text is ASCII without blanks and control characters: it can stand in a log line and a key.
func printable(s string) bool {
	return !slices.ContainsFunc([]byte(s), func(c byte) bool { return c <= ' ' || c >= 0x7f })
}

// environment is an error about one variable: missing if it has no value.
func environment[S ~string](name string, value S, remedy string) *Error {
	if value == "" {
		return Errorf(CodeInvalidEnvironment, "required environment variable "+name+" is not set", "%s", remedy)
	}
	return Errorf(CodeInvalidEnvironment, "invalid environment variable "+name, "%s: %s", abbreviated(string(value)), remedy)
}

// abbreviated quotes a value for an error, short enough for a log line.
func abbreviated(value string) string {
	const most = 64
	if len(value) > most {
		return fmt.Sprintf("%q...", value[:most])
	}
	return fmt.Sprintf("%q", value)
}
