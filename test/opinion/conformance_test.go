package opinion

import (
	"slices"
	"testing"
	"time"

	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/network-policy-api/conformance/tests"
	"sigs.k8s.io/network-policy-api/conformance/utils/config"
	"sigs.k8s.io/network-policy-api/conformance/utils/suite"
)

// The conformance suite of ClusterNetworkPolicy passes, all features included, as it is: it sets up its pods, applies its
// manifests, changes objects, and has pods connect.
func TestClusterNetworkPolicyConformanceIPv4(t *testing.T) { runConformance(t, 0) }

func TestClusterNetworkPolicyConformanceIPv6(t *testing.T) { runConformance(t, 1) }

func runConformance(t *testing.T, family int) {
	server := newAPIServer(newWorld(), family)
	kubeConfig := rest.Config{Host: server.serve(t)}
	clientSet, err := kubernetes.NewForConfig(&kubeConfig)
	if err != nil {
		t.Fatal(err)
	}
	s := suite.New(suite.Options{
		Client: server, ClientSet: clientSet, KubeConfig: kubeConfig, EnableAllSupportedFeatures: true,
		// Verdicts are in force at once: to wait for one that does not come would only make a failure slow.
		TimeoutConfig: config.TimeoutConfig{PokeInterval: time.Millisecond, PokeTimeout: 500 * time.Millisecond},
	})
	s.Setup(t)
	var names []string
	for _, test := range tests.ConformanceTests {
		test.Parallel = false
		names = append(names, test.ShortName)
		t.Run(test.ShortName, func(t *testing.T) { test.Run(t, s) })
	}
	slices.Sort(names)
	t.Logf("%d tests: %v\n%d connections asked about: %d pass, %d do not", len(names), names,
		server.asked[true]+server.asked[false], server.asked[true], server.asked[false])
	if server.asked[true] == 0 || server.asked[false] == 0 {
		t.Error("every connection had the same verdict")
	}
}
