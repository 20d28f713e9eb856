package main

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"text/template"
	"time"
)

// check is one question and the answer that it must have.
type check struct {
	what   string
	from   string // pod
	target string // host:port
	denied bool   // nobody must answer
	to     string // pod that it is for, if it is one
}

// checkResult is what came of one.
type checkResult struct {
	Check  string   `json:"check"`
	From   string   `json:"from"`
	Target string   `json:"target"`
	Denied bool     `json:"denied"` // it must be
	OK     bool     `json:"ok"`
	Why    string   `json:"why,omitempty"`
	Drops  []string `json:"drops,omitempty"` // what agents say of it
	// Skipped is why it was not made.
	Skipped string `json:"skipped,omitempty"`
}

const (
	askPatience  = time.Second     // for an answer
	execTakes    = 3 * time.Second // at the most, to begin a command in a pod
	deniedInARow = 3
	dropsShown   = 3
)

// checkAll makes all checks, first without and then with policies.
func (c *connectivity) checkAll(ctx context.Context) error {
	c.skip()
	for _, one := range c.openChecks() {
		if err := c.check(ctx, one); err != nil {
			return err
		}
	}
	if err := c.apply(ctx, testPolicies, map[string]any{}); err != nil {
		return err
	}
	for _, one := range c.policyChecks() {
		if err := c.check(ctx, one); err != nil {
			return err
		}
	}
	return nil
}

// skip notes what a single node cannot prove.
func (c *connectivity) skip() {
	if len(c.nodes) > 1 {
		return
	}
	why := fmt.Sprintf("%s is the only node with an agent that is ready", c.nodes[0])
	for _, what := range []string{"pod to pod between nodes", "process of a node to pod between nodes", "ingress policy lets clients in, of the last node"} {
		result := checkResult{Check: what, Skipped: why}
		c.results = append(c.results, result)
		c.told(result)
	}
}

// openChecks are of a cluster without policies for the pods.
func (c *connectivity) openChecks() (all []check) {
	last := len(c.nodes)
	between := map[bool]string{false: "on one node", true: "between nodes"}
	add := func(what, from, target, to string) {
		all = append(all, check{what: what, from: from, target: target, to: to})
	}
	for i := 1; i <= last; i++ {
		for j := 1; j <= last; j++ {
			server := fmt.Sprintf("server-%d", j)
			for _, ip := range c.pods[server].Status.PodIPs {
				across := between[c.pods[server].Spec.NodeName != c.nodes[i-1]]
				add("pod to pod "+across, fmt.Sprintf("client-%d", i), hostPort(ip.IP, testPort), server)
				add("process of a node to pod "+across, fmt.Sprintf("host-%d", i), hostPort(ip.IP, testPort), server)
			}
		}
		for _, ip := range c.service.Spec.ClusterIPs {
			add("pod to service", fmt.Sprintf("client-%d", i), hostPort(ip, 80), "")
			add("process of a node to service", fmt.Sprintf("host-%d", i), hostPort(ip, 80), "")
		}
		add("pod to service by its name", fmt.Sprintf("client-%d", i), "server."+testNamespace+".svc:80", "")
		for j, node := range c.nodes {
			for _, ip := range c.pods[fmt.Sprintf("host-%d", j+1)].Status.HostIPs {
				if c.serves(ip.IP) {
					add("pod to node port of "+node, fmt.Sprintf("client-%d", i), hostPort(ip.IP, uint32(c.service.Spec.Ports[0].NodePort)), "")
				}
			}
		}
	}
	for _, ip := range c.pods["server-1"].Status.PodIPs { // what policy is to change must be open before
		add("pod to pod before there is a policy", fmt.Sprintf("other-%d", last), hostPort(ip.IP, testPort), "server-1")
	}
	for _, ip := range c.pods["client-1"].Status.PodIPs {
		add("pod to pod before there is a policy", fmt.Sprintf("stranger-%d", last), hostPort(ip.IP, testPort), "client-1")
	}
	return all
}

// serves says whether the service has an address's family, so that its node port is there.
func (c *connectivity) serves(ip string) bool {
	for _, own := range c.service.Spec.ClusterIPs {
		if strings.Contains(own, ":") == strings.Contains(ip, ":") {
			return true
		}
	}
	return false
}

// testPolicies let clients alone to the servers, and strangers nowhere.
var testPolicies = template.Must(template.New("").Parse(`apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: servers, namespace: {{.Namespace}}}
spec: {podSelector: {matchLabels: {role: server}}, policyTypes: [Ingress], ingress: [{from: [{podSelector: {matchLabels: {role: client}}}]}]}
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: strangers, namespace: {{.Namespace}}}
spec: {podSelector: {matchLabels: {role: stranger}}, policyTypes: [Egress]}
`))

// policyChecks are of the same pods with policies.
func (c *connectivity) policyChecks() (all []check) {
	far := fmt.Sprint(len(c.nodes))
	for _, ip := range c.pods["server-1"].Status.PodIPs {
		target := hostPort(ip.IP, testPort)
		all = append(all,
			check{what: "ingress policy keeps others out", from: "other-" + far, target: target, denied: true, to: "server-1"},
			check{what: "ingress policy lets clients in, of this node", from: "client-1", target: target, to: "server-1"})
		if len(c.nodes) > 1 {
			all = append(all, check{what: "ingress policy lets clients in, of the last node", from: "client-" + far, target: target, to: "server-1"})
		}
	}
	for _, ip := range c.pods["client-1"].Status.PodIPs {
		all = append(all, check{what: "egress policy keeps a pod in", from: "stranger-" + far, target: hostPort(ip.IP, testPort), denied: true, to: "client-1"})
	}
	for _, ip := range c.service.Spec.ClusterIPs {
		all = append(all,
			check{what: "policy holds behind the service", from: "stranger-" + far, target: hostPort(ip, 80), denied: true},
			check{what: "service lets clients through the policy", from: "client-" + far, target: hostPort(ip, 80)})
	}
	return all
}

// check asks until the answer is what it must be, for as long as changes may take to be in force. A denial must hold a few times in a row.
func (c *connectivity) check(ctx context.Context, one check) error {
	result := checkResult{
		Check: fmt.Sprintf("%s: %s asks %s", one.what, one.from, one.target), From: one.from, Target: one.target, Denied: one.denied,
	}
	if one.denied {
		result.Check += ", in vain"
	}
	inARow, begun := 0, time.Now()
	for {
		answer, err := c.ask(ctx, one)
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		switch {
		case !one.denied && err == nil:
			result.OK = true
		case one.denied && isStatus(err): // it asked, and nobody answered
			inARow++
			result.OK, result.Why = inARow == deniedInARow, ""
		case one.denied && err == nil:
			inARow, result.Why = 0, "it is answered: "+strings.TrimSpace(answer)
		default:
			result.Why = err.Error()
		}
		if result.OK || inARow == 0 && time.Since(begun) > c.within {
			break
		}
		if err := pause(ctx); err != nil {
			return err
		}
	}
	if !result.OK {
		result.Drops = c.drops(ctx, one, time.Since(begun)+execTakes)
	}
	c.results = append(c.results, result)
	c.told(result)
	return nil
}

// isStatus tells a question without answer from one that was not asked.
func isStatus(err error) bool {
	_, ok := errors.AsType[*statusError](err)
	return ok
}

// ask has a pod ask.
func (c *connectivity) ask(ctx context.Context, one check) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, askPatience+askTimeout)
	defer cancel()
	answer, err := c.cluster.exec(ctx, container{testNamespace, one.from, "probe"}, "/tendril", "probe", "ask", "--timeout", askPatience.String(), one.target)
	return string(answer), err
}

// drops is what the agents of both sides say that they dropped of a pod's packets since then, or why they do not say.
func (c *connectivity) drops(ctx context.Context, one check, since time.Duration) (lines []string) {
	asked := map[string]bool{}
	for _, pod := range []string{one.from, one.to} {
		if pod == "" || asked[c.pods[pod].Spec.NodeName] {
			continue
		}
		node := c.pods[pod].Spec.NodeName
		asked[node] = true
		arguments := []string{"observe", "--verdict", "dropped", "--since", since.Round(time.Millisecond).String(), "--last", fmt.Sprint(dropsShown), "--pod", testNamespace + "/" + one.from}
		text, err := c.cluster.inAgent(ctx, c.agents, c.agent[node], arguments...)
		if err != nil {
			lines = append(lines, fmt.Sprintf("agent of %s: %v", node, err))
			continue
		}
		for line := range strings.Lines(string(text)) {
			lines = append(lines, node+": "+strings.TrimSpace(line))
		}
	}
	return lines
}
