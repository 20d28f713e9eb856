package kube

import (
	"reflect"
	"slices"
	"strings"
	"testing"

	"tendril.io/tendril/api/cilium"
)

// meaning is what becomes of a cilium.io policy with a rule: its translation, or why it is refused.
func meaning(t *testing.T, spec string) string {
	t.Helper()
	objects, err := Decode("x.yaml", []byte(ciliumHeader+"spec: "+spec+"\n"))
	if err != nil {
		t.Fatalf("%s: %v", spec, err)
	}
	p, err := objects[0].Policy()
	if err != nil {
		return "refused: " + err.Error()
	}
	return render(p)
}

// TestNoFieldOfACiliumPolicyIsIgnored: setting a field changes what the policy means, or the policy is refused with the
// field's name; a field that were read and forgotten would allow more, or less, than its author wrote.
func TestNoFieldOfACiliumPolicyIsIgnored(t *testing.T) {
	const (
		rules   = `{endpointSelector: {}, %}`
		ingress = `{endpointSelector: {}, ingress: [{%}]}`
		egress  = `{endpointSelector: {}, egress: [{%}]}`
		deny    = `{endpointSelector: {}, ingress: [{}], ingressDeny: [{%}]}`
		refuse  = `{endpointSelector: {}, egress: [{}], egressDeny: [{%}]}`
		port    = `{endpointSelector: {}, ingress: [{toPorts: [{ports: [{%}]}]}]}`
		ports   = `{endpointSelector: {}, ingress: [{toPorts: [{ports: [{port: "80"}], %}]}]}`
		icmp    = `{endpointSelector: {}, ingress: [{icmps: [{fields: [{%}]}]}]}`
		set     = `{endpointSelector: {}, ingress: [{fromCIDRSet: [{%}]}]}`
		l7      = `{endpointSelector: {}, egress: [{toPorts: [{ports: [{port: "80", protocol: TCP}], rules: {%}}]}]}`
		http    = `{endpointSelector: {}, egress: [{toPorts: [{ports: [{port: "80", protocol: TCP}], rules: {http: [{%}]}}]}]}`
		header  = `{endpointSelector: {}, egress: [{toPorts: [{ports: [{port: "80", protocol: TCP}], rules: {http: [{headerMatches: [{%}]}]}}]}]}`
		kafka   = `{endpointSelector: {}, egress: [{toPorts: [{ports: [{port: "80", protocol: TCP}], rules: {kafka: [{%}]}}]}]}`
		// What follows is a part of a rule.
		service  = `{k8sService: {serviceName: a}}`
		services = `{k8sServiceSelector: {selector: {}}}`
		world    = `Entities: [world]`
		anyone   = `toPorts: [{ports: [{port: "80"}]}]`
	)
	type change struct{ around, without, with string }
	all := map[string][]change{
		"Rule": {
			{rules, `ingress: [{}]`, `ingress: [{}], nodeSelector: {}`},
			{rules, `ingress: [{}]`, `ingress: [{}], ingressDeny: [{from` + world + `}]`},
			{rules, `ingress: [{}]`, `ingress: [{}], egress: [{}]`},
			{rules, `ingress: [{}]`, `ingress: [{}], egressDeny: [{to` + world + `}]`},
			{rules, `ingress: [{}]`, `ingress: [{}], enableDefaultDeny: {ingress: false}`},
			{rules, `ingress: [{}]`, `ingress: [{}], enableDefaultDeny: {egress: true}`},
		},
		"From": {
			{ingress, ``, `fromEndpoints: [{}]`}, {ingress, ``, `fromCIDR: [192.0.2.0/24]`},
			{ingress, ``, `fromCIDRSet: [{cidr: 192.0.2.0/24}]`}, {ingress, ``, `from` + world},
			{ingress, ``, `fromNodes: [{}]`}, {ingress, ``, `fromGroups: [{}]`}, {ingress, ``, `fromRequires: [{}]`},
			{ingress, `fromNodes: [{}]`, `fromNodes: [{matchLabels: {a: b}}]`},
			{ingress, `from` + world, `from` + world + `, fromRequires: [{}]`},
			{ingress, `fromEndpoints: [{}]`, `fromEndpoints: [{}], fromRequires: [{matchLabels: {a: b}}]`},
			{ingress, anyone, anyone + `, fromRequires: [{}]`},
			{deny, ``, `fromEndpoints: [{}]`}, {deny, ``, `fromNodes: [{}]`}, {deny, ``, `fromRequires: [{}]`},
		},
		"To": {
			{egress, ``, `toEndpoints: [{}]`}, {egress, ``, `toCIDR: [192.0.2.0/24]`},
			{egress, ``, `toCIDRSet: [{cidr: 192.0.2.0/24}]`}, {egress, ``, `to` + world},
			{egress, ``, `toServices: [{}]`}, {egress, ``, `toNodes: [{}]`}, {egress, ``, `toGroups: [{}]`},
			{egress, ``, `toFQDNs: [{matchName: a.b}]`}, {egress, ``, `toRequires: [{}]`}, {egress, ``, `toServices: [` + service + `]`},
			{refuse, ``, `toEndpoints: [{}]`}, {refuse, ``, `toFQDNs: [{matchName: a.b}]`}, {refuse, ``, `toServices: [` + service + `]`},
			{refuse, ``, `toRequires: [{}]`},
		},
		"IngressRule": {
			{ingress, ``, anyone}, {ingress, ``, `icmps: [{fields: [{type: 8}]}]`},
			{ingress, anyone, anyone + `, authentication: {mode: required}`},
			{ingress, anyone, anyone + `, authentication: {mode: test-always-fail}`},
		},
		"EgressRule": {
			{egress, ``, anyone}, {egress, ``, `icmps: [{fields: [{type: 8}]}]`},
			{egress, anyone, anyone + `, authentication: {mode: required}`},
		},
		"IngressDenyRule": {{deny, ``, anyone}, {deny, ``, `icmps: [{fields: [{type: 8}]}]`}},
		"EgressDenyRule":  {{refuse, ``, anyone}, {refuse, ``, `icmps: [{fields: [{type: 8}]}]`}},
		"PortRule": {
			{ports, ``, `terminatingTLS: {}`}, {ports, ``, `originatingTLS: {}`}, {ports, ``, `serverNames: [a.b]`},
			{ports, ``, `listener: {}`}, {ports, ``, `rules: {http: [{}]}`}, {ports, ``, `rules: {http: []}`},
		},
		"Service": {
			{egress, `toServices: [` + service + `]`, `toServices: [{k8sService: {serviceName: other}}]`},
			{egress, `toServices: [` + service + `]`, `toServices: [{k8sServiceSelector: {selector: {}}}]`},
		},
		"ServiceName": {
			{egress, `toServices: [` + service + `]`, `toServices: [{k8sService: {serviceName: a, namespace: b}}]`},
			{egress, `toServices: [` + service + `]`, `toServices: [{k8sService: {namespace: b}}]`},
		},
		"ServiceSelector": {
			{egress, `toServices: [` + services + `]`, `toServices: [{k8sServiceSelector: {selector: {matchLabels: {a: b}}}}]`},
			{egress, `toServices: [` + services + `]`, `toServices: [{k8sServiceSelector: {selector: {}, namespace: b}}]`},
		},
		"FQDNSelector": {
			{egress, `toFQDNs: [{matchName: a.b}]`, `toFQDNs: [{matchName: a.c}]`},
			{egress, `toFQDNs: [{matchName: a.b}]`, `toFQDNs: [{matchPattern: a.b}]`},
			{egress, `toFQDNs: [{matchName: a.b}]`, `toFQDNs: [{matchName: a.b, matchPattern: a.b}]`},
		},
		"L7Rules": {
			{l7, ``, `http: [{}]`}, {l7, ``, `kafka: [{}]`}, {l7, ``, `dns: [{matchName: a.b}]`}, {l7, ``, `l7proto: r2d2`},
			{l7, `l7proto: r2d2`, `l7proto: r2d2, l7: [{a: b}]`}, {l7, `http: [{}]`, `http: [{}], kafka: [{}]`},
		},
		"HTTPRule": {
			{http, ``, `path: /a`}, {http, ``, `method: GET`}, {http, ``, `host: a`}, {http, ``, `headers: [a]`},
			{http, `headers: [a]`, `headers: ["a: b"]`}, {http, ``, `headerMatches: [{name: a}]`},
		},
		"HeaderMatch": {
			{header, `name: a`, `name: b`}, {header, `name: a`, `name: a, value: b`}, {header, `name: a`, `name: a, mismatch: LOG`},
			{header, `name: a`, `name: a, secret: {}`},
		},
		"KafkaRule": {
			{kafka, ``, `role: produce`}, {kafka, ``, `apiKey: fetch`}, {kafka, ``, `apiVersion: "1"`}, {kafka, ``, `clientID: a`},
			{kafka, ``, `topic: a`},
		},
		"PortProtocol": {
			{port, `port: "80"`, `port: "81"`}, {port, `port: "80"`, `port: http`}, {port, `port: "80"`, `port: "0"`},
			{port, `port: "80"`, `port: "80", endPort: 81`}, {port, `port: "80"`, `port: "80", endPort: 79`},
			{port, `port: "80"`, `port: "80", protocol: UDP`}, {port, `port: "80"`, `port: "80", protocol: ICMP`},
			{port, `port: "0", protocol: TCP`, `port: "0", protocol: SCTP`}, {port, `protocol: ICMP`, `protocol: ICMPv6`},
			{port, `protocol: VRRP`, `protocol: IGMP`}, {port, `protocol: TCP, port: "1"`, `protocol: ANY, port: "1"`},
		},
		"ICMPField": {
			{icmp, `type: 8`, `type: 0`}, {icmp, `type: 8`, `type: TimeExceeded`}, {icmp, `type: 3`, `type: 3, family: IPv6`},
		},
		"CIDRRule": {
			{set, `cidr: 192.0.2.0/24`, `cidr: 192.0.2.0/25`}, {set, `cidr: 192.0.2.0/24`, `cidr: 192.0.2.0/24, except: [192.0.2.0/25]`},
			{set, `cidr: 192.0.2.0/24`, `cidr: 192.0.2.0/24, cidrGroupRef: g`},
			{set, `cidr: 192.0.2.0/24`, `cidr: 192.0.2.0/24, cidrGroupSelector: {}`},
		},
	}
	for typ, changes := range all {
		for _, c := range changes {
			without := meaning(t, strings.ReplaceAll(c.around, "%", c.without))
			if with := meaning(t, strings.ReplaceAll(c.around, "%", c.with)); with == without {
				t.Errorf("%s: {%s} means the same as {%s}:\n%s", typ, c.with, c.without, with)
			}
		}
	}
	everyFieldIsIn(t, all["Rule"][0].around, func(typ string) string {
		var text string
		for _, c := range all[typ] {
			text += c.around + c.with
		}
		return text
	})
}

// everyFieldIsIn fails for fields of the rules' types that no case names. Those without effect on verdicts are left out.
func everyFieldIsIn(t *testing.T, around string, cases func(typ string) string) {
	t.Helper()
	harmless := []string{"labels", "description", "log"}
	for _, typ := range []reflect.Type{
		reflect.TypeFor[cilium.Rule](), reflect.TypeFor[cilium.From](), reflect.TypeFor[cilium.To](), reflect.TypeFor[cilium.IngressRule](),
		reflect.TypeFor[cilium.EgressRule](), reflect.TypeFor[cilium.IngressDenyRule](), reflect.TypeFor[cilium.EgressDenyRule](),
		reflect.TypeFor[cilium.PortRule](), reflect.TypeFor[cilium.PortProtocol](), reflect.TypeFor[cilium.ICMPField](),
		reflect.TypeFor[cilium.CIDRRule](), reflect.TypeFor[cilium.Service](), reflect.TypeFor[cilium.ServiceName](),
		reflect.TypeFor[cilium.ServiceSelector](), reflect.TypeFor[cilium.FQDNSelector](), reflect.TypeFor[cilium.L7Rules](),
		reflect.TypeFor[cilium.HTTPRule](), reflect.TypeFor[cilium.HeaderMatch](), reflect.TypeFor[cilium.KafkaRule](),
	} {
		for i := range typ.NumField() {
			name, _, _ := strings.Cut(typ.Field(i).Tag.Get("json"), ",")
			if name != "" && !slices.Contains(harmless, name) && !strings.Contains(around+cases(typ.Name()), name+":") {
				t.Errorf("%s.%s: no case sets it", typ.Name(), name)
			}
		}
	}
}

func TestTextBesideARuleChangesNoVerdict(t *testing.T) {
	plain := meaning(t, `{endpointSelector: {}, ingress: [{}]}`)
	for _, beside := range []string{`labels: [{key: a, value: b}]`, `description: d`, `log: {value: v}`} {
		if got := meaning(t, `{endpointSelector: {}, ingress: [{}], `+beside+`}`); got != plain {
			t.Errorf("with %s the policy means\n%s\nwithout it\n%s", beside, got, plain)
		}
	}
}

func TestValuesThatDecodeThemselvesAreRefusedInTheirOwnWords(t *testing.T) {
	const header = "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: web}\n"
	for spec, want := range map[string]string{
		header + "spec: {podSelector: {}, ingress: [{ports: [{port: [80]}]}]}":                                                "spec.ingress[0].ports[0].port: Invalid value: \"[...]\": want a whole number or a name",
		"apiVersion: v1\nkind: Pod\nmetadata: {name: a, creationTimestamp: yesterday}\nspec: {}\n":                            "metadata.creationTimestamp: Invalid value: \"yesterday\": want a time like 2006-01-02T15:04:05Z",
		"apiVersion: v1\nkind: Pod\nmetadata: {name: a}\nspec: {containers: [{name: a, resources: {limits: {cpu: much}}}]}\n": "spec.containers[0].resources.limits[cpu]: Invalid value: \"much\": want a quantity like 100m or 2Gi",
	} {
		if got := mistakesOf(spec); !strings.Contains(got, want) {
			t.Errorf("got %s\nwant %s", got, want)
		}
	}
}
