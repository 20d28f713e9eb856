package cni

import (
	"encoding/json"
	"path/filepath"
	"slices"
	"strings"
)

// DefaultSocket and DefaultDataDir are used where the network configuration names none: they lie in the agent's default
// run and state folders.
const (
	DefaultSocket  = "/run/tendril/cni.sock"
	DefaultDataDir = "/var/lib/tendril"
)

// Versions returns the CNI versions that the plugin speaks, oldest first.
func Versions() []string { return []string{"0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"} }

// Config is the plugin's network configuration (section 1): what the administrator wrote, plus what the runtime adds.
type Config struct {
	CNIVersion string `json:"cniVersion"`
	Name       string `json:"name"`
	Type       string `json:"type"`
	// Socket is the agent's CNI socket. Default DefaultSocket.
	Socket string `json:"socket,omitempty"`
	// DataDir holds deletions that wait for the agent. Default DefaultDataDir.
	DataDir string `json:"dataDir,omitempty"`
	// Args.Tendril describes the pod where no operator does.
	Args struct {
		Tendril *PodArgs `json:"tendril,omitempty"`
	} `json:"args,omitempty"`
	// RuntimeConfig.Tendril is the same, given by the runtime for one container; PortMappings are its host ports and Bandwidth is
	// what it may send and get, where the configuration has the capabilities "portMappings" and "bandwidth".
	RuntimeConfig struct {
		Tendril      *PodArgs      `json:"tendril,omitempty"`
		PortMappings []PortMapping `json:"portMappings,omitempty"`
		Bandwidth    Bandwidth     `json:"bandwidth,omitzero"`
	} `json:"runtimeConfig,omitempty"`
	// ValidAttachments are, with GC, all that the runtime knows of; nil: it did not say, which is not the same as none.
	ValidAttachments attachments `json:"cni.dev/valid-attachments,omitempty"`
	// PrevResult is, with ADD, what the plugin before this one in the list answered: see Previous. With CHECK and DEL it is what the
	// whole list answered.
	PrevResult json.RawMessage `json:"prevResult,omitempty"`
}

// attachments is a list that is nil only if nobody gave it: runtimes written in Go spell a list of none as null.
type attachments []Attachment

// UnmarshalJSON is called for null as well, but not for a field that is absent.
func (a *attachments) UnmarshalJSON(text []byte) error {
	list := []Attachment{}
	if err := json.Unmarshal(text, &list); err != nil {
		return err
	}
	if *a = list; list == nil {
		*a = attachments{}
	}
	return nil
}

// PodArgs describes a pod in the network configuration.
type PodArgs struct {
	Labels         map[string]string `json:"labels,omitempty"`
	ServiceAccount string            `json:"serviceAccount,omitempty"`
	NamedPorts     []string          `json:"namedPorts,omitempty"` // name:port or name:port/protocol
}

// PortMapping is a host port as runtimes spell it (CNI conventions, "portMappings").
type PortMapping struct {
	HostPort      int    `json:"hostPort"`
	ContainerPort int    `json:"containerPort"`
	Protocol      string `json:"protocol,omitempty"` // tcp (default), udp or sctp
	HostIP        string `json:"hostIP,omitempty"`   // empty or unspecified: every address of the node
}

// Bandwidth is what a container may send and get, as runtimes spell it (CNI conventions, "bandwidth"); 0: no limit. Bursts are not read:
// nothing is enforced yet.
type Bandwidth struct {
	IngressRate int64 `json:"ingressRate,omitempty"` // to the container, bit/s
	EgressRate  int64 `json:"egressRate,omitempty"`  // from it, bit/s
}

// ParseConfig reads a network configuration, fills in defaults and validates. Errors are of type *Error. Unknown
// fields are left to other plugins, as the specification wants.
func ParseConfig(raw []byte) (*Config, error) {
	if len(raw) == 0 {
		return nil, Errorf(CodeDecode, "network configuration is empty", "the runtime must write it to standard input")
	}
	var config Config
	if err := json.Unmarshal(raw, &config); err != nil {
		return nil, Errorf(CodeDecode, "network configuration is not valid JSON", "%v", err)
	}
	if config.CNIVersion == "" {
		config.CNIVersion = "0.1.0" // what a missing field means (section 1)
	}
	if config.Socket == "" {
		config.Socket = DefaultSocket
	}
	if config.DataDir == "" {
		config.DataDir = DefaultDataDir
	}
	if err := config.validate(); err != nil {
		return nil, err
	}
	return &config, nil
}

// validate checks what both sides use. Fields of the pod are checked with CNI_ARGS, where they are merged.
func (c *Config) validate() error {
	if !slices.Contains(Versions(), c.CNIVersion) {
		return Errorf(CodeIncompatibleVersion, "incompatible CNI version", "cniVersion is %s: use one of %s",
			abbreviated(c.CNIVersion), strings.Join(Versions(), ", "))
	}
	if !validIdentifier(c.Name) {
		return Errorf(CodeInvalidConfig, "invalid network name", "name is %s: start with a letter or digit, then letters, "+
			"digits, '_', '.' or '-'", abbreviated(c.Name))
	}
	paths := []struct{ field, path string }{{"socket", c.Socket}, {"dataDir", c.DataDir}}
	for _, p := range paths {
		if !filepath.IsAbs(p.path) || strings.ContainsRune(p.path, 0) {
			return Errorf(CodeInvalidConfig, "invalid path in network configuration", "%s is %s: give an absolute path",
				p.field, abbreviated(p.path))
		}
	}
	const maxSocket = 107 // sun_path less the final zero, linux/un.h
	if len(c.Socket) > maxSocket {
		return Errorf(CodeInvalidConfig, "invalid path in network configuration", "socket is %d bytes long: use at most %d",
			len(c.Socket), maxSocket)
	}
	return nil
}

// supports says whether the configuration's version knows a command.
func (c *Config) supports(command Command) error {
	since := map[Command]string{Check: "0.4.0", Status: "1.1.0", GC: "1.1.0"}[command]
	if since != "" && slices.Index(Versions(), c.CNIVersion) < slices.Index(Versions(), since) {
		return Errorf(CodeIncompatibleVersion, "incompatible CNI version",
			"%s is not part of cniVersion %s: use %s or newer", command, c.CNIVersion, since)
	}
	// Taken for an empty list, a missing one would detach every pod of the node.
	if command == GC && c.ValidAttachments == nil {
		return Errorf(CodeInvalidConfig, "list of valid attachments is missing",
			"cni.dev/valid-attachments is not set: list what may stay, or [] if nothing may")
	}
	return nil
}
