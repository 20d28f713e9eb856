package main

import (
	"context"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"testing"
	"time"

	discoveryv1 "k8s.io/api/discovery/v1"
)

// get asks a server that has so many numbers.
func get(t *testing.T, numbers int, query string) *http.Response {
	t.Helper()
	mux := http.NewServeMux()
	serve(mux, "/numbers", "v1", "NumberList", make([]int, numbers))
	server := httptest.NewServer(mux)
	ctx, cancel := context.WithCancel(t.Context())
	t.Cleanup(func() { cancel(); server.Close() })
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, server.URL+"/numbers"+query, nil)
	if err != nil {
		t.Fatal(err)
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { response.Body.Close() })
	return response
}

func TestAListHasTheFirstStepAndAWatchBringsTheRest(t *testing.T) {
	var list struct{ Items []int }
	if err := json.NewDecoder(get(t, step+3, "").Body).Decode(&list); err != nil {
		t.Fatal(err)
	}
	begin, events := time.Now(), json.NewDecoder(get(t, step+3, "?watch=true").Body)
	for range 3 {
		var event struct{ Type string }
		if err := events.Decode(&event); err != nil || event.Type != "ADDED" {
			t.Fatalf("event %q, error %v", event.Type, err)
		}
	}
	if len(list.Items) != step || time.Since(begin) < pause {
		t.Errorf("%d items in the list, the others after %s; want %d and %s", len(list.Items), time.Since(begin), step, pause)
	}
}

func TestAStreamedListIsRefusedSoThatTheClientLists(t *testing.T) {
	if got := get(t, 1, "?watch=true&sendInitialEvents=true").StatusCode; got != http.StatusUnprocessableEntity {
		t.Errorf("status %d, want %d", got, http.StatusUnprocessableEntity)
	}
}

func TestRealServicesAreSpreadEvenlyAndTheLastIsOne(t *testing.T) {
	real := netip.MustParseAddr("10.244.1.3")
	var got []int
	for i, slice := range sliceList(100, 30, real, "node1", 7000) {
		if slice.Endpoints[0].Addresses[0] == real.String() {
			got = append(got, i)
		}
		if name := slice.Labels[discoveryv1.LabelServiceName]; name != serviceName(i) {
			t.Errorf("slice %d is of service %q, want %q", i, name, serviceName(i))
		}
	}
	if want := []int{0, 30, 60, 90, 99}; len(got) != len(want) || got[1] != want[1] || got[4] != want[4] {
		t.Errorf("real services %v, want %v", got, want)
	}
}
