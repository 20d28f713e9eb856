package kube

import (
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/testing/protocmp"

	storev1 "tendril.io/tendril/api/store/v1"
	"tendril.io/tendril/internal/identity"
	"tendril.io/tendril/internal/label"
)

// recordsOf translates a manifest that must be right.
func recordsOf(t *testing.T, manifest string) []Record {
	t.Helper()
	objects, err := Decode("x.yaml", []byte(manifest))
	if err != nil {
		t.Fatal(err)
	}
	records, err := Records(objects, "lab")
	if err != nil {
		t.Fatal(err)
	}
	return records
}

func TestRecordsAreSlim(t *testing.T) {
	id := identity.Of("lab", "shop", "bot", label.SetOf(map[string]string{"app": "web"}))
	tests := []struct {
		sentence, manifest string
		want               map[string]proto.Message
	}{
		{"a namespace is its labels", `
apiVersion: v1
kind: Namespace
metadata: {name: shop, labels: {team: red}, annotations: {note: x}}
`, map[string]proto.Message{
			"namespaces/shop": &storev1.Namespace{Labels: map[string]string{"team": "red"}},
		}},
		{"a node is its labels and its pods' prefixes", `
apiVersion: v1
kind: Node
metadata: {name: node1, labels: {role: edge}}
spec: {podCIDR: 10.1.0.0/24}
status: {addresses: [{type: InternalIP, address: 192.0.2.1}]}
`, map[string]proto.Message{
			"nodelabels/node1": &storev1.NodeLabels{Labels: map[string]string{"role": "edge"}, PodCidrs: []string{"10.1.0.0/24"}},
		}},
		{"a node of both families has a prefix of each", `
apiVersion: v1
kind: Node
metadata: {name: node1}
spec: {podCIDR: 10.1.0.0/24, podCIDRs: [10.1.0.0/24, "FD00:1::/64"]}
`, map[string]proto.Message{
			"nodelabels/node1": &storev1.NodeLabels{PodCidrs: []string{"10.1.0.0/24", "fd00:1::/64"}},
		}},
		{"a pool is its ranges, canonical, and whom it is for", `
apiVersion: tendril.io/v1alpha1
kind: LoadBalancerPool
metadata: {name: office, labels: {note: x}}
spec:
  cidrs: [192.0.2.64/26, "2001:DB8::/64", 198.51.100.1]
  namespaceSelector: {matchLabels: {team: red}}
`, map[string]proto.Message{
			"pools/office": &storev1.LoadBalancerPool{
				Prefixes:          []string{"192.0.2.64/26", "2001:db8::/64", "198.51.100.1/32"},
				NamespaceSelector: []*storev1.Requirement{{Key: "team", Operator: "In", Values: []string{"red"}}},
			},
		}},
		{"a load balancer asks for the families and addresses that it wants, unless another controller serves it", `
apiVersion: v1
kind: Service
metadata: {name: web, labels: {app: web}, annotations: {service.tendril.io/load-balancer-ips: "2001:db8::5"}}
spec: {type: LoadBalancer, clusterIP: 10.96.0.1, ipFamilyPolicy: PreferDualStack, ports: [{port: 80}]}
---
apiVersion: v1
kind: Service
metadata: {name: theirs}
spec: {type: LoadBalancer, loadBalancerClass: example.com/theirs, clusterIP: 10.96.0.2, ports: [{port: 80}]}
---
apiVersion: v1
kind: Service
metadata: {name: proxied}
spec: {type: LoadBalancer, clusterIP: 10.96.0.3, ports: [{port: 80}]}
status: {loadBalancer: {ingress: [{ip: 203.0.113.6, ipMode: Proxy}, {ip: 203.0.113.7, ipMode: VIP}]}}
---
apiVersion: v1
kind: Service
metadata: {name: by-name}
spec: {type: LoadBalancer, clusterIP: 10.96.0.4, ports: [{port: 80}]}
status: {loadBalancer: {ingress: [{hostname: lb.example.com}]}}
`, map[string]proto.Message{
			"services/default/web": &storev1.Service{
				Labels: map[string]string{"app": "web"},
				Type:   storev1.Service_LOAD_BALANCER, ClusterIps: [][]byte{{10, 96, 0, 1}}, Ports: []*storev1.ServicePort{{Protocol: 6, Port: 80}},
				LoadBalancer: &storev1.LoadBalancer{
					Families: []uint32{4, 6}, Prefer: true, Labels: map[string]string{"app": "web"},
					Wishes: [][]byte{{0x20, 1, 0xd, 0xb8, 15: 5}},
				},
			},
			"services/default/theirs": &storev1.Service{
				Type: storev1.Service_LOAD_BALANCER, ClusterIps: [][]byte{{10, 96, 0, 2}}, Ports: []*storev1.ServicePort{{Protocol: 6, Port: 80}},
			},
			"services/default/proxied": &storev1.Service{
				Type: storev1.Service_LOAD_BALANCER, ClusterIps: [][]byte{{10, 96, 0, 3}}, Ports: []*storev1.ServicePort{{Protocol: 6, Port: 80}},
				LoadBalancerIps: [][]byte{{203, 0, 113, 7}},
			},
			"services/default/by-name": &storev1.Service{
				Type: storev1.Service_LOAD_BALANCER, ClusterIps: [][]byte{{10, 96, 0, 4}}, Ports: []*storev1.ServicePort{{Protocol: 6, Port: 80}},
			},
		}},
		{"a group of ranges is its ranges, canonical, and its labels", `
apiVersion: cilium.io/v2alpha1
kind: CiliumCIDRGroup
metadata: {name: office, labels: {role: vpn}}
spec: {externalCIDRs: [10.48.0.7/24, 192.0.2.1, "2001:DB8::/32"]}
---
apiVersion: cilium.io/v2
kind: CiliumCIDRGroup
metadata: {name: lab}
spec: {externalCIDRs: [198.51.100.0/24]}
`, map[string]proto.Message{
			"cidrgroups/office": &storev1.CIDRGroup{Prefixes: []string{"10.48.0.0/24", "192.0.2.1/32", "2001:db8::/32"}, Labels: map[string]string{"role": "vpn"}},
			"cidrgroups/lab":    &storev1.CIDRGroup{Prefixes: []string{"198.51.100.0/24"}},
		}},
		{"a pod is its label set by hash, its named ports and little else", `
apiVersion: v1
kind: Pod
metadata: {name: web-1, namespace: shop, uid: u1, labels: {app: web}}
spec:
  nodeName: node1
  serviceAccountName: bot
  hostNetwork: true
  containers:
  - name: nginx
    image: nginx
    resources: {requests: {cpu: 100m}}
    ports: [{name: http, containerPort: 80}, {containerPort: 81}]
  - name: dns
    ports: [{name: dns, containerPort: 53, protocol: UDP}]
status: {conditions: [{type: Initialized, status: "True"}, {type: Ready, status: "True"}]}
`, map[string]proto.Message{
			"labels/" + id.String(): &storev1.LabelSet{
				Cluster: "lab", Namespace: "shop", ServiceAccount: "bot", Labels: map[string]string{"app": "web"},
			},
			"pods/node1/shop/web-1": &storev1.Pod{
				Uid: "u1", Labels: id[:], HostNetwork: true,
				NamedPorts: []*storev1.NamedPort{{Name: "http", Port: 80, Protocol: 6}, {Name: "dns", Port: 53, Protocol: 17}},
			},
		}},
		{"a service is its frontends and options", `
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop, labels: {tier: front}, annotations: {service.tendril.io/algorithm: maglev, service.tendril.io/forwarding: dsr}}
spec:
  type: LoadBalancer
  clusterIPs: [10.96.0.10, "fd00::10"]
  selector: {app: web}
  ports: [{name: http, port: 80, targetPort: http, nodePort: 30080}, {name: dns, port: 53, protocol: UDP}]
  sessionAffinity: ClientIP
  internalTrafficPolicy: Local
  externalTrafficPolicy: Local
  healthCheckNodePort: 30999
  externalIPs: [192.0.2.1]
  loadBalancerSourceRanges: [198.51.100.7/24]
  trafficDistribution: PreferClose
  publishNotReadyAddresses: true
status: {loadBalancer: {ingress: [{ip: 203.0.113.5}, {hostname: lb.example.com}]}}
`, map[string]proto.Message{
			"services/shop/web": &storev1.Service{
				Type:       storev1.Service_LOAD_BALANCER,
				ClusterIps: [][]byte{{10, 96, 0, 10}, {0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x10}},
				Selector:   map[string]string{"app": "web"},
				Ports: []*storev1.ServicePort{
					{Name: "http", Protocol: 6, Port: 80, NodePort: 30080}, {Name: "dns", Protocol: 17, Port: 53},
				},
				AffinitySeconds: 10800, InternalLocal: true, ExternalLocal: true, HealthCheckNodePort: 30999,
				ExternalIps: [][]byte{{192, 0, 2, 1}}, LoadBalancerIps: [][]byte{{203, 0, 113, 5}},
				SourceRanges: []string{"198.51.100.0/24"}, TrafficDistribution: "PreferClose", PublishNotReady: true,
				Algorithm: "maglev", Forwarding: "dsr", Labels: map[string]string{"tier": "front"},
			},
		}},
		{"a headless service has no address and needs no port; a random one says nothing", `
apiVersion: v1
kind: Service
metadata: {name: db, annotations: {service.tendril.io/algorithm: random}}
spec: {clusterIP: None, sessionAffinity: None}
`, map[string]proto.Message{"services/default/db": &storev1.Service{}}},
		{"affinity lasts as long as it says", `
apiVersion: v1
kind: Service
metadata: {name: db}
spec: {clusterIP: 10.0.0.1, ports: [{port: 80}], sessionAffinity: ClientIP, sessionAffinityConfig: {clientIP: {timeoutSeconds: 60}}}
`, map[string]proto.Message{"services/default/db": &storev1.Service{
			ClusterIps: [][]byte{{10, 0, 0, 1}}, AffinitySeconds: 60, Ports: []*storev1.ServicePort{{Port: 80, Protocol: 6}},
		}}},
		{"an external name has no frontend", `
apiVersion: v1
kind: Service
metadata: {name: db}
spec: {type: ExternalName, externalName: db.example.com}
`, map[string]proto.Message{"services/default/db": &storev1.Service{Type: storev1.Service_EXTERNAL_NAME}}},
		{"a slice is its backends: ready unless said otherwise, serving if ready unless said otherwise", `
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: web-x, namespace: shop, labels: {kubernetes.io/service-name: web}, annotations: {service.tendril.io/weight: "3"}}
addressType: IPv4
ports: [{name: http, port: 8080}, {name: dns, port: 53, protocol: UDP}]
endpoints:
- addresses: [10.1.0.5, 10.1.0.6]
  nodeName: node1
  zone: a
  hints: {forZones: [{name: b}, {name: c}]}
  targetRef: {kind: Pod, namespace: shop, name: web-1}
- {addresses: [10.1.1.5], conditions: {ready: false, serving: true, terminating: true}}
- {addresses: [10.1.2.5], conditions: {ready: false}}
`, map[string]proto.Message{
			"endpoints/shop/web/web-x": &storev1.Endpoints{
				Weight: 3,
				Ports:  []*storev1.EndpointPort{{Name: "http", Protocol: 6, Port: 8080}, {Name: "dns", Protocol: 17, Port: 53}},
				Backends: []*storev1.Backend{
					{Addresses: [][]byte{{10, 1, 0, 5}}, Node: "node1", Zone: "a", Ready: true, Serving: true, Pod: "shop/web-1", HintZones: []string{"b", "c"}},
					{Addresses: [][]byte{{10, 1, 1, 5}}, Serving: true, Terminating: true},
					{Addresses: [][]byte{{10, 1, 2, 5}}},
				},
			},
		}},
		{"policies are kept as written, clusterwide ones under no namespace", `
apiVersion: cilium.io/v2
kind: CiliumClusterwideNetworkPolicy
metadata: {name: all}
spec: {endpointSelector: {}, ingress: [{}]}
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: web, namespace: shop}
spec: {podSelector: {}}
`, map[string]proto.Message{
			"policies/CiliumClusterwideNetworkPolicy/-/all": &storev1.Policy{
				Object: []byte(`{"apiVersion":"cilium.io/v2","kind":"CiliumClusterwideNetworkPolicy","metadata":{"name":"all"},"spec":{"endpointSelector":{},"ingress":[{}]}}`),
				Source: "x.yaml",
			},
			"policies/NetworkPolicy/shop/web": &storev1.Policy{
				Object: []byte(`{"apiVersion":"networking.k8s.io/v1","kind":"NetworkPolicy","metadata":{"name":"web","namespace":"shop"},"spec":{"podSelector":{}}}`),
				Source: "x.yaml",
			},
		}},
	}
	for _, test := range tests {
		t.Run(test.sentence, func(t *testing.T) {
			got := map[string]proto.Message{}
			for _, record := range recordsOf(t, test.manifest) {
				got[record.Key] = record.Value
			}
			if diff := cmp.Diff(test.want, got, protocmp.Transform()); diff != "" {
				t.Errorf("records (-want +got):\n%s", diff)
			}
		})
	}
}

// TestNamedPortsAreThoseOfContainersThatRunWithThePod: an init container that has ended listens to nothing, a sidecar does.
func TestNamedPortsAreThoseOfContainersThatRunWithThePod(t *testing.T) {
	const pod = `
apiVersion: v1
kind: Pod
metadata: {name: web, namespace: shop}
spec:
  nodeName: node1
  initContainers:
  - {name: prepare, ports: [{name: setup, containerPort: 1}]}
  - {name: mesh, restartPolicy: Always, ports: [{name: mesh, containerPort: 15001}, {containerPort: 15002}]}
  containers:
  - {name: one, ports: [{name: http, containerPort: 80}, {containerPort: 81}]}
  - {name: two, ports: [{name: dns, containerPort: 53, protocol: UDP}]}
`
	records, err := Records([]*Object{decodeOne(t, pod)}, "lab")
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, port := range records[1].Value.(*storev1.Pod).NamedPorts {
		got = append(got, fmt.Sprintf("%s %d/%d", port.Name, port.Port, port.Protocol))
	}
	if diff := cmp.Diff([]string{"mesh 15001/6", "http 80/6", "dns 53/17"}, got); diff != "" {
		t.Errorf("named ports (-want +got):\n%s", diff)
	}
	wrong := strings.Replace(pod, "containerPort: 1}", "containerPort: 70000}", 1)
	want := "x.yaml document 1, Pod shop/web: spec.initContainers[0].ports[0].containerPort: Invalid value: 70000: a port is a number from 1 to 65535"
	if diff := cmp.Diff(want, mistakesOf(wrong)); diff != "" {
		t.Errorf("mistakes (-want +got):\n%s", diff)
	}
}

func TestAPodEventIsSmall(t *testing.T) {
	records := recordsOf(t, `
apiVersion: v1
kind: Pod
metadata: {name: web-7d4b9c6f5-x2x7k, namespace: production, uid: 6f1c1f0e-7a3c-4b52-9e55-0c8a7f1f1a11, labels: {app: web, pod-template-hash: 7d4b9c6f5}}
spec: {nodeName: node-17, containers: [{name: c, ports: [{name: http, containerPort: 8080}]}]}
`)
	for _, record := range records {
		if record.Shared {
			continue
		}
		size := len(record.Key) + proto.Size(record.Value)
		if size > 150 {
			t.Errorf("record %s takes %d bytes with its key, want at most 150", record.Key, size)
		}
	}
}

func TestAFieldThatNobodyNeedsChangesNoRecord(t *testing.T) {
	const pod = `
apiVersion: v1
kind: Pod
metadata: {name: a, resourceVersion: "%d", annotations: {beat: "%d"}}
spec: {nodeName: node1, containers: [{name: c, image: "i:%d"}]}
`
	one, two := recordsOf(t, sprint(pod, 1)), recordsOf(t, sprint(pod, 2))
	for i := range one {
		if !proto.Equal(one[i].Value, two[i].Value) || one[i].Key != two[i].Key {
			t.Errorf("record %s changed", one[i].Key)
		}
	}
}

func sprint(format string, n int) string { return fmt.Sprintf(format, n, n, n) }
