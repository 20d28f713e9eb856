// Command apiserver answers the questions that kube-proxy asks of a Kubernetes API server, about services that come and stay:
//
//	apiserver LISTEN NODE NODE-ADDRESS SERVICES REAL BACKEND PORT
//
// serves, on LISTEN, one node and so many services with a ClusterIP and one endpoint each. Service i has the ClusterIP 10.96.0.0 + i.
// REAL of them, spread evenly from the first on, and the last one have the endpoint BACKEND; those of the others answer
// nobody. It is for benchmarks: whoever connects may read everything.
package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "apiserver:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	if len(args) != 7 {
		return errors.New("usage: apiserver LISTEN NODE NODE-ADDRESS SERVICES REAL BACKEND PORT")
	}
	services, err1 := strconv.Atoi(args[3])
	real, err2 := strconv.Atoi(args[4])
	backend, err3 := netip.ParseAddr(args[5])
	port, err4 := strconv.ParseUint(args[6], 10, 16)
	if err := errors.Join(err1, err2, err3, err4); err != nil {
		return err
	}
	if real < 1 || services < real {
		return fmt.Errorf("%d real services of %d: give at least one, and no more than there are", real, services)
	}
	mux := http.NewServeMux()
	serve(mux, "/api/v1/nodes", "v1", "NodeList", []corev1.Node{node(args[1], args[2])})
	serve(mux, "/api/v1/services", "v1", "ServiceList", serviceList(services, int32(port)))
	serve(mux, "/apis/discovery.k8s.io/v1/endpointslices", "discovery.k8s.io/v1", "EndpointSliceList", sliceList(services, services/real, backend, args[1], int32(port)))
	serve(mux, "/apis/networking.k8s.io/v1/servicecidrs", "networking.k8s.io/v1", "ServiceCIDRList", []struct{}{})
	return http.ListenAndServe(args[0], mux)
}

// A cluster grows by steps: nft's own time for a transaction rises with the square of what is in it, and 20,000 services at
// once take it two minutes.
const (
	step  = 4000 // objects that a list has, and those that come at once afterwards
	pause = 1500 * time.Millisecond
)

// serve answers lists of a resource with the first step of the items, and watches with the others.
func serve[T any](mux *http.ServeMux, path, version, kind string, items []T) {
	first := items[:min(step, len(items))]
	mux.HandleFunc("GET "+path, func(w http.ResponseWriter, r *http.Request) {
		query := r.URL.Query()
		w.Header().Set("Content-Type", "application/json")
		switch {
		case query.Has("sendInitialEvents"): // KEP-3157; a client that is refused lists
			w.WriteHeader(http.StatusUnprocessableEntity)
			_ = json.NewEncoder(w).Encode(metav1.Status{ // whoever is gone asks again, here and below
				TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Status"}, Status: metav1.StatusFailure,
				Reason: metav1.StatusReasonInvalid, Code: http.StatusUnprocessableEntity, Message: "lists are not streamed",
			})
		case query.Get("watch") == "1" || query.Get("watch") == "true":
			watch(w, r, items[len(first):])
		default:
			_ = json.NewEncoder(w).Encode(map[string]any{
				"apiVersion": version, "kind": kind, "metadata": metav1.ListMeta{ResourceVersion: "1"}, "items": first,
			})
		}
	})
}

// watch brings items step by step, and then nothing until the client goes.
func watch[T any](w http.ResponseWriter, r *http.Request, items []T) {
	w.WriteHeader(http.StatusOK)
	out, stream := http.NewResponseController(w), json.NewEncoder(w)
	err := out.Flush()
	for some := range slices.Chunk(items, step) {
		time.Sleep(pause)
		for _, item := range some {
			err = errors.Join(err, stream.Encode(map[string]any{"type": "ADDED", "object": item}))
		}
		if err = errors.Join(err, out.Flush()); err != nil {
			return
		}
	}
	<-r.Context().Done()
}

func meta(name string) metav1.ObjectMeta {
	return metav1.ObjectMeta{Namespace: "bench", Name: name, UID: types.UID("uid-of-" + name), ResourceVersion: "1"}
}

func node(name, address string) corev1.Node {
	n := corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name, UID: "node", ResourceVersion: "1"}}
	n.Status.Addresses = []corev1.NodeAddress{{Type: corev1.NodeInternalIP, Address: address}}
	return n
}

func serviceName(i int) string { return "s" + strconv.Itoa(i) }

// clusterIP is an address of 10.96.0.0/12, where Kubernetes has them by default.
func clusterIP(i int) string {
	return netip.AddrFrom4([4]byte{10, byte(96 + i>>16), byte(i >> 8), byte(i)}).String()
}

func serviceList(services int, port int32) []corev1.Service {
	all := make([]corev1.Service, services)
	for i := range all {
		all[i].TypeMeta, all[i].ObjectMeta = metav1.TypeMeta{APIVersion: "v1", Kind: "Service"}, meta(serviceName(i))
		all[i].Spec = corev1.ServiceSpec{
			Type: corev1.ServiceTypeClusterIP, ClusterIP: clusterIP(i), ClusterIPs: []string{clusterIP(i)},
			IPFamilies: []corev1.IPFamily{corev1.IPv4Protocol}, SessionAffinity: corev1.ServiceAffinityNone,
			Ports: []corev1.ServicePort{{Name: "load", Protocol: corev1.ProtocolTCP, Port: port}},
		}
	}
	return all
}

func sliceList(services, every int, backend netip.Addr, node string, port int32) []discoveryv1.EndpointSlice {
	all := make([]discoveryv1.EndpointSlice, services)
	ready, name, protocol := true, "load", corev1.ProtocolTCP
	for i := range all {
		address := backend

		if i%every != 0 && i != services-1 { // the last one is waited for
			address = netip.AddrFrom4([4]byte{10, byte(16 + i>>16), byte(i >> 8), byte(i)})
		}
		all[i].TypeMeta = metav1.TypeMeta{APIVersion: "discovery.k8s.io/v1", Kind: "EndpointSlice"}
		all[i].ObjectMeta = meta(serviceName(i) + "-1")
		all[i].Labels = map[string]string{discoveryv1.LabelServiceName: serviceName(i)}
		all[i].AddressType = discoveryv1.AddressTypeIPv4
		all[i].Endpoints = []discoveryv1.Endpoint{{
			Addresses: []string{address.String()}, NodeName: &node,
			Conditions: discoveryv1.EndpointConditions{Ready: &ready, Serving: &ready},
		}}
		all[i].Ports = []discoveryv1.EndpointPort{{Name: &name, Protocol: &protocol, Port: &port}}
	}
	return all
}
