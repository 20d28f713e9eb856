package node

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"tendril.io/tendril/internal/service"
	"tendril.io/tendril/internal/table"
)

// freePort is one that nobody listens at.
func freePort(t *testing.T) uint16 {
	t.Helper()
	listener, err := net.Listen("tcp", ":0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	return uint16(listener.Addr().(*net.TCPAddr).Port)
}

// ask is a load balancer's question: status, weight, body.
func ask(t *testing.T, port uint16) string {
	t.Helper()
	response, err := http.Get(fmt.Sprintf("http://127.0.0.1:%d/healthz", port))
	if err != nil {
		return "no answer"
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	if err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf("%d %s %s", response.StatusCode, response.Header.Get("X-Load-Balancing-Endpoint-Weight"), body)
}

func TestALoadBalancerLearnsWhetherTheNodeHasABackend(t *testing.T) {
	healthy := true
	servers := healthServers{healthy: func() bool { return healthy }}
	defer servers.close()
	check := service.HealthCheck{Namespace: "shop", Name: "web", Port: freePort(t), Local: 2}
	for _, step := range []struct {
		local   int
		healthy bool
		want    string
	}{
		{2, true, `200 2 {"service":{"namespace":"shop","name":"web"},"localEndpoints":2,"serviceProxyHealthy":true}`},
		{0, true, `503 0 {"service":{"namespace":"shop","name":"web"},"localEndpoints":0,"serviceProxyHealthy":true}`},
		{1, false, `503 1 {"service":{"namespace":"shop","name":"web"},"localEndpoints":1,"serviceProxyHealthy":false}`},
	} {
		check.Local, healthy = step.local, step.healthy
		servers.set([]service.HealthCheck{check})
		if got := ask(t, check.Port); got != step.want {
			t.Errorf("with %d backends: got %s, want %s", step.local, got, step.want)
		}
	}
	servers.set(nil)
	if got := ask(t, check.Port); got != "no answer" {
		t.Errorf("after the service has gone: %s", got)
	}
}

func TestAHealthPortThatIsTakenIsAProblem(t *testing.T) {
	listener, err := net.Listen("tcp", ":0")
	if err != nil {
		t.Fatal(err)
	}
	servers := healthServers{healthy: func() bool { return true }}
	defer servers.close()
	check := service.HealthCheck{Namespace: "shop", Name: "web", Port: uint16(listener.Addr().(*net.TCPAddr).Port), Local: 1}
	servers.set([]service.HealthCheck{check})
	problems := servers.problems()
	if len(problems) != 1 || problems[0].Object != "service shop/web" || !strings.Contains(problems[0].Message, "cannot be answered") {
		t.Errorf("problems %v, want one of service shop/web", problems)
	}
	view := service.View{Namespace: "shop", Name: "web", Problems: []service.Problem{{Object: "service shop/web", Message: "it has none", Remedy: "give it one"}}}
	line := serviceProblem(view, servers.problem("shop/web"), "")
	if !strings.HasPrefix(line, "it has none: give it one; healthCheckNodePort ") || !strings.HasSuffix(line, "or give the service another port") {
		t.Errorf("on the service's line: %q", line)
	}
	if got := servers.problem("shop/dns"); got != nil {
		t.Errorf("on another service's line: %v", got)
	}
	listener.Close()
	servers.set([]service.HealthCheck{check})
	if got := ask(t, check.Port); len(servers.problems()) != 0 || !strings.HasPrefix(got, "200 1 ") || servers.retry() != nil {
		t.Errorf("once the port is free: %s, problems %v", got, servers.problems())
	}
}

// Who ends what listened at the port need not touch the service.
func TestAHealthPortIsAnsweredOnceItIsFree(t *testing.T) {
	listener, err := net.Listen("tcp", ":0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	l := testServiceLoop(t)
	tables := l.tables
	l.health.pause = time.Millisecond
	port := uint16(listener.Addr().(*net.TCPAddr).Port)
	txn := tables.DB.WriteTxn(tables.Services)
	if _, _, err := tables.Services.Insert(txn, &table.Service{
		Namespace: "shop", Name: "web", Type: "LoadBalancer", ClusterIPs: addrs("10.96.0.1"), ExternalLocal: true, HealthCheckNodePort: port,
		Ports: []table.ServicePort{{Protocol: 6, Port: 80}},
	}); err != nil {
		t.Fatal(err)
	}
	txn.Commit()
	loaded, done := make(chan struct{}), make(chan error)
	close(loaded)
	ctx, cancel := context.WithCancel(t.Context())
	go func() { done <- l.Run(ctx, loaded, nil) }()
	eventually(t, "the port is found taken", func() bool { return l.health.problem("shop/web") != nil })
	listener.Close()
	eventually(t, "the check is answered", func() bool { return strings.HasPrefix(ask(t, port), "503 0 ") })
	if problem := l.health.problem("shop/web"); problem != nil {
		t.Errorf("once the port is free: %v", problem)
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}
