package kube

import (
	"math"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"k8s.io/apimachinery/pkg/util/validation/field"

	"tendril.io/tendril/api/cilium"
	"tendril.io/tendril/internal/ipproto"
	"tendril.io/tendril/internal/policy"
)

// What a rule asks beyond L4 is checked in full, so that the model is what a proxy will be given; where there is none, the
// policy is refused as a whole (policyRecord).
// Source: the page "Layer 7 Policies" of Cilium's documentation, and the comments of its types api.L7Rules, api.PortRule,
// api.PortRuleHTTP and kafka.PortRule.

// beyondL4 translates what a list of ports asks of its traffic; nil: nothing.
func (r *ciliumRule) beyondL4(p *cilium.PortRule, ports []policy.Port, at *field.Path) (*policy.L7, field.ErrorList) {
	errs := tlsRefusals(p, at)
	var l7 policy.L7
	for i, name := range p.ServerNames {
		text, wrong := domain(name, true, at.Child("serverNames").Index(i))
		l7.ServerNames, errs = append(l7.ServerNames, text), append(errs, wrong...)
	}
	asks := p.ServerNames != nil
	if p.Rules != nil {
		wrong := l7Rules(p.Rules, &l7, at.Child("rules"))
		errs = append(errs, wrong...)
		asks = asks || len(l7Kinds(p.Rules)) > 0
	}
	if !asks {
		return nil, errs
	}
	return &l7, append(errs, r.l7Mistakes(p, ports, at)...)
}

// l7Mistakes finds what contradicts the ports or the rule around it.
func (r *ciliumRule) l7Mistakes(p *cilium.PortRule, ports []policy.Port, at *field.Path) (errs field.ErrorList) {
	var kinds []string
	if p.Rules != nil {
		kinds = l7Kinds(p.Rules)
	}
	ofDNS := slices.Contains(kinds, "dns")
	switch {
	case r.action == policy.Deny:
		errs = append(errs, field.Forbidden(at, "a deny rule ends at ports; to deny requests, allow the others"))
	case ofDNS && r.direction == policy.Ingress:
		errs = append(errs, field.Forbidden(at.Child("rules", "dns"), "names are asked for on egress; write the rule there"))
	case len(kinds) > 0 && len(p.ServerNames) > 0:
		errs = append(errs, field.Forbidden(at.Child("serverNames"), "the requests inside TLS cannot be read; give serverNames or rules"))
	}
	for i := range p.Ports {
		if protocol := strings.ToUpper(p.Ports[i].Protocol); protocol != "TCP" && !ofDNS {
			errs = append(errs, field.Invalid(at.Child("ports").Index(i).Child("protocol"), p.Ports[i].Protocol, "requests can only be read of TCP; write TCP"))
		}
	}
	if slices.ContainsFunc(ports, func(p policy.Port) bool { return p == anyPort(p.Protocol) && ipproto.HasPorts(p.Protocol) }) {
		errs = append(errs, field.Forbidden(at.Child("ports"), "requests can only be read on ports that are named; give numbers"))
	}
	return errs
}

// tlsRefusals names what needs keys that tendril does not hold, or a proxy that is not its own.
func tlsRefusals(p *cilium.PortRule, at *field.Path) (errs field.ErrorList) {
	if p.TerminatingTLS != nil {
		errs = append(errs, field.Forbidden(at.Child("terminatingTLS"), "TLS is not terminated here; remove the field, or the rule that has it"))
	}
	if p.OriginatingTLS != nil {
		errs = append(errs, field.Forbidden(at.Child("originatingTLS"), "TLS is not originated here; remove the field, or the rule that has it"))
	}
	if p.Listener != nil {
		errs = append(errs, field.Forbidden(at.Child("listener"), "there are no listeners of Envoy here; remove the field, or the rule that has it"))
	}
	return errs
}

// l7Kinds names the protocols of which something is asked. An empty list counts: its author did not mean "anything".
func l7Kinds(r *cilium.L7Rules) (kinds []string) {
	if r.HTTP != nil {
		kinds = append(kinds, "http")
	}
	if r.Kafka != nil {
		kinds = append(kinds, "kafka")
	}
	if r.DNS != nil {
		kinds = append(kinds, "dns")
	}
	if r.L7Proto != "" || r.L7 != nil {
		kinds = append(kinds, "l7proto")
	}
	return kinds
}

// l7Rules translates the rules of one protocol.
func l7Rules(r *cilium.L7Rules, l7 *policy.L7, at *field.Path) (errs field.ErrorList) {
	kinds := l7Kinds(r)
	if len(kinds) > 1 {
		errs = append(errs, field.Forbidden(at, strings.Join(kinds, " and ")+" cannot be combined on one port; write a list of ports for each"))
	}
	have := map[string]int{"http": len(r.HTTP), "kafka": len(r.Kafka), "dns": len(r.DNS), "l7proto": 1} // a parser alone allows all
	for _, kind := range kinds {
		if have[kind] == 0 {
			errs = append(errs, field.Required(at.Child(kind), "list at least one rule; {} allows every request"))
		}
	}
	for i := range r.HTTP {
		rule, wrong := httpRule(&r.HTTP[i], at.Child("http").Index(i))
		l7.HTTP, errs = append(l7.HTTP, rule), append(errs, wrong...)
	}
	for i := range r.Kafka {
		rule, wrong := kafkaRule(&r.Kafka[i], at.Child("kafka").Index(i))
		l7.Kafka, errs = append(l7.Kafka, rule), append(errs, wrong...)
	}
	for i := range r.DNS {
		names, wrong := fqdn(&r.DNS[i], at.Child("dns").Index(i))
		l7.DNS, errs = append(l7.DNS, names), append(errs, wrong...)
	}
	if r.L7 != nil && r.L7Proto == "" {
		errs = append(errs, field.Required(at.Child("l7proto"), "name the protocol that l7 is about"))
	}
	for i, fields := range r.L7 {
		if _, ok := fields[""]; ok {
			errs = append(errs, field.Invalid(at.Child("l7").Index(i), "", "a key is empty; name it"))
		}
	}
	l7.Protocol, l7.Fields = r.L7Proto, r.L7
	return errs
}

// httpRule translates a rule about HTTP requests.
// A header that mismatches can only make the rule not hold: to log or rewrite the request instead would let it pass.
func httpRule(h *cilium.HTTPRule, at *field.Path) (policy.HTTPRule, field.ErrorList) {
	rule := policy.HTTPRule{Method: h.Method, Path: h.Path, Host: h.Host}
	errs := slices.Concat(expression(h.Method, at.Child("method")), expression(h.Path, at.Child("path")), expression(h.Host, at.Child("host")))
	for i, text := range h.Headers {
		name, value, _ := strings.Cut(text, " ")
		name = strings.TrimSuffix(name, ":")
		rule.Headers = append(rule.Headers, policy.HeaderRule{Name: name, Value: strings.TrimSpace(value)})
		errs = append(errs, headerName(name, at.Child("headers").Index(i))...)
	}
	for i, m := range h.HeaderMatches {
		here := at.Child("headerMatches").Index(i)
		rule.Headers = append(rule.Headers, policy.HeaderRule{Name: m.Name, Value: m.Value})
		errs = append(errs, headerName(m.Name, here.Child("name"))...)
		if m.Mismatch != "" {
			errs = append(errs, field.Forbidden(here.Child("mismatch"), "requests are allowed or denied, not rewritten; remove the field to deny those that mismatch"))
		}
		if m.Secret != nil {
			errs = append(errs, field.Forbidden(here.Child("secret"), "secrets are not read; give the value"))
		}
	}
	return rule, errs
}

// expression checks a regular expression as it is written: put between anchors, "a)|(b" would be one.
func expression(text string, at *field.Path) field.ErrorList {
	if _, err := regexp.Compile(text); err != nil {
		return field.ErrorList{field.Invalid(at, text, "not a regular expression (RE2): "+err.Error())}
	}
	return nil
}

// headerName checks a field name of HTTP: a token of RFC 9110, 5.6.2.
func headerName(name string, at *field.Path) field.ErrorList {
	isOther := func(r rune) bool {
		isWord := r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9'
		return !isWord && !strings.ContainsRune("!#$%&'*+-.^_`|~", r)
	}
	if name == "" || strings.ContainsFunc(name, isOther) {
		return field.ErrorList{field.Invalid(at, name, "not the name of a header; write one like X-Token, or X-Token: value where both stand together")}
	}
	return nil
}

// kafkaRule translates a rule about Kafka requests; names of roles and keys count whatever their case.
func kafkaRule(k *cilium.KafkaRule, at *field.Path) (policy.KafkaRule, field.ErrorList) {
	rule := policy.KafkaRule{
		Role: strings.ToLower(k.Role), APIKey: strings.ToLower(k.APIKey), APIVersion: k.APIVersion, ClientID: k.ClientID, Topic: k.Topic,
	}
	var errs field.ErrorList
	if k.Role != "" && k.APIKey != "" {
		errs = append(errs, field.Forbidden(at.Child("apiKey"), "a role stands for its keys; give role or apiKey"))
	}
	if roles := []string{"produce", "consume"}; k.Role != "" && !slices.Contains(roles, rule.Role) {
		errs = append(errs, field.NotSupported(at.Child("role"), k.Role, roles))
	}
	if k.APIKey != "" && !slices.Contains(kafkaKeys(), rule.APIKey) {
		errs = append(errs, field.NotSupported(at.Child("apiKey"), k.APIKey, kafkaKeys()))
	}
	if _, err := strconv.ParseUint(k.APIVersion, 10, 15); k.APIVersion != "" && err != nil {
		errs = append(errs, field.Invalid(at.Child("apiVersion"), k.APIVersion, "a version is a number from 0 to "+strconv.Itoa(math.MaxInt16)))
	}
	if !isTopic(k.Topic) {
		errs = append(errs, field.Invalid(at.Child("topic"), k.Topic, "a topic has up to 255 letters, digits, '.', '_' and '-'"))
	}
	return rule, errs
}

func isTopic(name string) bool {
	return len(name) <= 255 && !strings.ContainsFunc(name, func(r rune) bool {
		return (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && (r < '0' || r > '9') && !strings.ContainsRune("._-", r)
	})
}

// kafkaKeys are the names of requests in Kafka's protocol ("Api Keys"), in the order of their numbers, which begin at 0.
func kafkaKeys() []string {
	return strings.Fields(`produce fetch offsets metadata leaderandisr stopreplica updatemetadata controlledshutdown
		offsetcommit offsetfetch findcoordinator joingroup heartbeat leavegroup syncgroup describegroups listgroups
		saslhandshake apiversions createtopics deletetopics deleterecords initproducerid offsetforleaderepoch
		addpartitionstotxn addoffsetstotxn endtxn writetxnmarkers txnoffsetcommit describeacls createacls deleteacls
		describeconfigs alterconfigs`)
}

// ciliumFQDN translates an entry of toFQDNs.
func ciliumFQDN(s cilium.FQDNSelector, at *field.Path) (policy.Peer, field.ErrorList) {
	names, errs := fqdn(&s, at)
	return policy.Peer{FQDN: &names}, errs
}

// fqdn reads a name or a pattern of names.
func fqdn(s *cilium.FQDNSelector, at *field.Path) (names policy.FQDN, errs field.ErrorList) {
	switch {
	case s.MatchName == "" && s.MatchPattern == "":
		return names, field.ErrorList{field.Required(at, "give matchName or matchPattern")}
	case s.MatchName != "" && s.MatchPattern != "":
		return names, field.ErrorList{field.Forbidden(at, "give only one of matchName and matchPattern; write an entry for each")}
	case s.MatchName != "":
		names.Name, errs = domain(s.MatchName, false, at.Child("matchName"))
	default:
		names.Pattern, errs = domain(s.MatchPattern, true, at.Child("matchPattern"))
	}
	return names, errs
}

// domain reads a name in DNS (RFC 1035, 2.3.4; underscores as of services), or a pattern with stars. Neither case nor a dot
// at the end counts.
func domain(text string, stars bool, at *field.Path) (string, field.ErrorList) {
	remedy := "not a name in DNS; write one like www.example.com"
	if stars {
		remedy = "not a pattern of names in DNS; write one like *.example.com"
	}
	name := strings.TrimSuffix(strings.ToLower(text), ".")
	labels := strings.Split(name, ".")
	isGood := func(i int) bool {
		l := labels[i]
		if i == 0 && stars && l == "**" && len(labels) > 1 {
			return true
		}
		return l != "" && len(l) <= 63 && !strings.Contains(l, "**") && !strings.ContainsFunc(l, func(r rune) bool {
			return (r < 'a' || r > 'z') && (r < '0' || r > '9') && r != '-' && r != '_' && (!stars || r != '*')
		})
	}
	for i := range labels {
		if len(name) > 253 || !isGood(i) {
			return "", field.ErrorList{field.Invalid(at, text, remedy)}
		}
	}
	return name, nil
}
