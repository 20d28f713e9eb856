package kube

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestCiliumNames(t *testing.T) {
	checkTranslations(t, ciliumHeader, []translation{
		{"names and patterns in lower case, without the dot at the end", `
spec:
  endpointSelector: {}
  egress: [{toFQDNs: [{matchName: WWW.Example.com.}, {matchPattern: "*.example.com"}, {matchPattern: "**.example.com"}, {matchPattern: "*"}, {matchPattern: "a*.b_c.d"}]}]
`, `
spec: @namespace=shop isolates [egress]
  spec.egress[0]: allow to name www.example.com or names like *.example.com or names like **.example.com or names like * or names like a*.b_c.d
`},
	})
}

func TestCiliumRequests(t *testing.T) {
	checkTranslations(t, ciliumHeader, []translation{
		{"ports of which something is asked are a rule of their own, with its place", `
spec:
  endpointSelector: {}
  ingress:
  - fromEndpoints: [{}]
    toPorts:
    - ports: [{port: "22", protocol: TCP}]
    - ports: [{port: "80", protocol: TCP}]
      rules: {http: [{method: "GET|HEAD", path: "/v1/.*", host: a.b, headers: ["X-A: b c", X-B], headerMatches: [{name: X-C, value: d}]}, {}]}
    - ports: [{port: "443", protocol: TCP}]
      serverNames: [Shop.example, "*.shop.example"]
    - ports: [{port: "53", protocol: UDP}]
      rules: {}
`, `
spec: @namespace=shop isolates [ingress]
  spec.ingress[0].toPorts[1]: allow from pods @namespace=shop at 6/80 asking http {Method:GET|HEAD Path:/v1/.* Host:a.b Headers:[{Name:X-A Value:b c} {Name:X-B Value:} {Name:X-C Value:d}]}; http {Method: Path: Host: Headers:[]}
  spec.ingress[0].toPorts[2]: allow from pods @namespace=shop at 6/443 asking tls shop.example,*.shop.example
  spec.ingress[0]: allow from pods @namespace=shop at 6/22 17/53
`},
		{"where something is asked of all ports, no rule is left that asks nothing", `
spec:
  endpointSelector: {}
  egress:
  - toEntities: [world]
    toPorts:
    - {ports: [{port: "9092", protocol: TCP}], rules: {kafka: [{role: Produce, topic: orders}, {apiKey: Fetch, apiVersion: "3", clientID: c}]}}
    - {ports: [{port: "53"}], rules: {dns: [{matchPattern: "*.example.com"}, {matchName: a.b}]}}
    - {ports: [{port: "4040", protocol: TCP}], rules: {l7proto: r2d2, l7: [{cmd: READ, file: a}]}}
`, `
spec: @namespace=shop isolates [egress]
  spec.egress[0].toPorts[0]: allow to entity world at 6/9092 asking kafka {Role:produce APIKey: APIVersion: ClientID: Topic:orders}; kafka {Role: APIKey:fetch APIVersion:3 ClientID:c Topic:}
  spec.egress[0].toPorts[1]: allow to entity world at 6/53 17/53 132/53 asking dns names like *.example.com; dns name a.b
  spec.egress[0].toPorts[2]: allow to entity world at 6/4040 asking r2d2 [map[cmd:READ file:a]]
`},
	})
}

// TestWhatNeedsAProxyIsRefusedPlaceByPlace: together with the other mistakes, and as a staged policy too; what is stored all
// the same is still read.
func TestWhatNeedsAProxyIsRefusedPlaceByPlace(t *testing.T) {
	manifest := strings.Replace(ciliumHeader, "{name: web,", `{name: web, annotations: {tendril.io/stage: "true"},`, 1) + `spec:
  endpointSelector: {}
  egress:
  - {toFQDNs: [{matchName: a.b}]}
  - {toEntities: [world], toPorts: [{ports: [{port: "80", protocol: TCP}]}, {ports: [{port: "81", protocol: TCP}], rules: {http: [{}]}}]}
  - {toEntities: [wurld]}
`
	const proxy = ": Forbidden: names in DNS and rules about requests need a proxy, which this version does not have; remove the rule"
	want := `x.yaml document 1, CiliumNetworkPolicy shop/web: spec.egress[2].toEntities[0]: Unsupported value: "wurld": supported values: "all", "cluster", "health", "host", "ingress", "init", "kube-apiserver", "none", "remote-node", "unmanaged", "world", "world-ipv4", "world-ipv6"
x.yaml document 1, CiliumNetworkPolicy shop/web: spec.egress[0]` + proxy + `
x.yaml document 1, CiliumNetworkPolicy shop/web: spec.egress[1].toPorts[1]` + proxy
	if diff := cmp.Diff(want, mistakesOf(manifest)); diff != "" {
		t.Errorf("mistakes (-want +got):\n%s", diff)
	}
	right := strings.Replace(manifest, "wurld", "world", 1)
	if got := mistakesOf(right); strings.Count(got, proxy) != 2 {
		t.Errorf("without the other mistake: got %s", got)
	}
	p, err := ParsePolicy("CiliumNetworkPolicy", decodeOne(t, right).JSON, "store")
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{"spec.egress[0]", "spec.egress[1].toPorts[1]"}, p.NeedsProxy()); diff != "" || !p.Staged {
		t.Errorf("needs a proxy at (-want +got), staged %v:\n%s", p.Staged, diff)
	}
}
