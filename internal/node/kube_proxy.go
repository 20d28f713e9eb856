package node

import (
	"context"
	"io"
	"net/http"
	"slices"
	"time"
)

// kubeProxyAddr is where kube-proxy tells its mode and its metrics, unless it was started with another --metrics-bind-address.
const kubeProxyAddr = "127.0.0.1:10249"

// kubeProxyPatience is for an answer from this machine. Where nobody listens, that is known at once.
const kubeProxyPatience = 300 * time.Millisecond

// kubeProxyMode asks a kube-proxy on this node how it works; empty: none answers. Whatever else listens there does not name a mode.
func kubeProxyMode(ctx context.Context, addr string) string {
	ctx, cancel := context.WithTimeout(ctx, kubeProxyPatience)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+addr+"/proxyMode", nil)
	if err != nil {
		return ""
	}
	direct := http.Client{Transport: &http.Transport{DisableKeepAlives: true}} // not by a proxy of the environment
	response, err := direct.Do(request)
	if err != nil {
		return ""
	}
	defer response.Body.Close()
	mode, err := io.ReadAll(io.LimitReader(response.Body, 16))
	if err != nil || !slices.Contains([]string{"iptables", "nftables", "ipvs"}, string(mode)) {
		return ""
	}
	return string(mode)
}
