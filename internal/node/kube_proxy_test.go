package node

import (
	"net"
	"net/http"
	"net/http/httptest"
	"testing"
)

func TestAKubeProxyOnTheNodeIsKnownByItsMode(t *testing.T) {
	for _, c := range []struct{ answer, want string }{
		{"nftables", "nftables"}, {"iptables", "iptables"}, {"ipvs", "ipvs"}, {"<html>", ""}, {"", ""}, {"iptables and much more", ""},
	} {
		server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Path != "/proxyMode" {
				t.Errorf("asked for %s", r.URL.Path)
			}
			w.Write([]byte(c.answer))
		}))
		// A machine that is busy may be too late with a single answer; one of many is in time.
		got := ""
		for range 100 {
			if got = kubeProxyMode(t.Context(), server.Listener.Addr().String()); got == c.want {
				break
			}
		}
		if got != c.want {
			t.Errorf("answer %q: got %q, want %q", c.answer, got, c.want)
		}
		server.Close()
	}
	free, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	free.Close()
	if got := kubeProxyMode(t.Context(), free.Addr().String()); got != "" {
		t.Errorf("nobody listens: got %q", got)
	}
}
