package policy

// L7 is what a rule asks of the requests on the ports that it allows: one of the alternatives must hold. The core only carries it;
// internal/kube fills it in, and what enforces it is not part of this package.
type L7 struct {
	HTTP        []HTTPRule
	Kafka       []KafkaRule
	DNS         []FQDN
	Protocol    string              // of a parser of the extension API; Fields are its own
	Fields      []map[string]string // alternatives
	ServerNames []string            // TLS SNI
}

// HTTPRule describes requests; what is empty matches all. Method, Path and Host are regular expressions (RE2, anchored at both ends).
type HTTPRule struct {
	Method, Path, Host string
	Headers            []HeaderRule
}

// HeaderRule asks for a header.
type HeaderRule struct {
	Name  string
	Value string // empty: any
}

// KafkaRule describes requests; what is empty matches all.
type KafkaRule struct {
	Role, APIKey, APIVersion, ClientID, Topic string
}

// NeedsProxy lists the places in the policy that only a proxy can enforce, as field paths: its names in DNS and its L7
// rules. A policy that needs a proxy is refused where there is none; nothing of it is widened.
func (p *Policy) NeedsProxy() []string {
	var places []string
	for i := range p.Specs {
		for j := range p.Specs[i].Rules {
			if r := &p.Specs[i].Rules[j]; r.needsProxy() {
				places = append(places, r.Place)
			}
		}
	}
	return places
}

func (r *Rule) needsProxy() bool {
	if r.L7 != nil {
		return true
	}
	for i := range r.Peers {
		if r.Peers[i].FQDN != nil {
			return true
		}
	}
	return false
}
