package policy

import (
	"errors"
	"net/netip"
)

// Engine turns facts and policies into what the kernel must hold. It is incremental and does not depend on the order
// in which it learns things: the same facts give the same tables up to numbering.
//
// Inputs are staged by the Set and Delete methods; Flush takes them all in at once. It is not safe for concurrent use.
type Engine struct {
	config  Config
	numbers Numbers
}

// New returns an engine that knows nothing yet. Its first Flush writes the reserved peers and the world.
func New(config Config, numbers Numbers) *Engine {
	return &Engine{config: config, numbers: numbers}
}

// SetNamespace stages a namespace's labels.
func (e *Engine) SetNamespace(name string, labels map[string]string) {}

// DeleteNamespace stages that a namespace has no labels.
func (e *Engine) DeleteNamespace(name string) {}

// SetPolicy stages a policy. One that is not valid is refused at once, with an error that names object and field;
// the version in force, if there is one, stays.
func (e *Engine) SetPolicy(p Policy) error { return nil }

// DeletePolicy stages that a policy is gone.
func (e *Engine) DeletePolicy(key Key) {}

// SetAddress stages what is known of an address (a prefix of full length) or of a prefix.
func (e *Engine) SetAddress(prefix netip.Prefix, fact AddressFact) {}

// DeleteAddress stages that nothing is known of an address or prefix any more.
func (e *Engine) DeleteAddress(prefix netip.Prefix) {}

// SetSubject stages a local endpoint, which is judged by the policies that select the workload.
func (e *Engine) SetSubject(endpoint uint32, w Workload) {}

// DeleteSubject stages that a local endpoint is gone.
func (e *Engine) DeleteSubject(endpoint uint32) {}

// Pending says whether Flush has something to do: staged inputs, or selectors that the last Flush left unused.
func (e *Engine) Pending() bool { return false }

// Flush takes in what is staged and returns what the kernel must learn. A policy that does not fit is refused (see
// Refused) and the rest goes on; where the lack of room is nobody's policy, Flush fails, nothing has changed, and the
// inputs stay staged.
func (e *Engine) Flush() (Delta, error) { return Delta{}, errors.ErrUnsupported }

// Refused lists the policies that are not in force as last given, by key.
func (e *Engine) Refused() []Refusal { return nil }

// Rule says what a rule id stands for. It also knows the builtin rules.
func (e *Engine) Rule(id uint32) (RuleInfo, bool) { return RuleInfo{}, false }

// Isolators lists the policies that make an endpoint's default a deny.
func (e *Engine) Isolators(endpoint uint32, direction Direction) []Key { return nil }

// Selected says how many local endpoints a policy selects.
func (e *Engine) Selected(key Key) int { return 0 }

// Party describes the owner of an address as Explain wants it.
func (e *Engine) Party(addr netip.Addr) Party { return Party{} }

// Explain proves the verdicts on a packet: the source's egress first, then the destination's ingress.
func (e *Engine) Explain(from, to Party, protocol uint8, port uint16) []Proof { return nil }
