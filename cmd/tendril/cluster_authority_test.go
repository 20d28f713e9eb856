package main

import (
	"bytes"
	"crypto/ed25519"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"math/big"
	"strings"
	"testing"
	"time"

	agentv1 "tendril.io/tendril/api/agent/v1"
)

// The screen has one line of the authority: until when it is good, or in which stage its replacement is and when the next one begins.
func TestClusterSaysHowFarTheAuthoritysReplacementIs(t *testing.T) {
	now := time.Now().UTC().Truncate(time.Second)
	at := func(d time.Duration) string { return now.Add(d).Format(time.RFC3339) }
	const year = 365 * 24 * time.Hour
	first, next := certificateUntil(t, now.Add(year)), certificateUntil(t, now.Add(10*year))
	for name, test := range map[string]struct {
		data map[string]string
		line string
		json string
	}{
		"no replacement":    {map[string]string{"ca.crt": first}, "until " + at(year) + ", for 365d0h", `{"good_until":"` + at(year) + `","stage":"","stage_ends":null}`},
		"agents are told":   {map[string]string{"ca.crt": first + next, "stage": "told", "stage-ends": at(8 * time.Minute)}, "being replaced, stage 1 of 3: agents learn of the next one, which issues from " + at(8*time.Minute) + ", in 8m0s", `{"good_until":"` + at(year) + `","stage":"told","stage_ends":"` + at(8*time.Minute) + `"}`},
		"nobody is told":    {map[string]string{"ca.crt": first + next, "stage": "told"}, "being replaced, stage 1 of 3: agents learn of the next one, which issues some time after", `{"good_until":"` + at(year) + `","stage":"told","stage_ends":null}`},
		"the next is due":   {map[string]string{"ca.crt": first + next, "stage": "told", "stage-ends": at(-time.Second)}, "being replaced, stage 1 of 3: agents learn of the next one, which issues within a minute", `{"good_until":"` + at(year) + `","stage":"told","stage_ends":"` + at(-time.Second) + `"}`},
		"the next issues":   {map[string]string{"ca.crt": first + next, "stage": "issues", "stage-ends": at(24 * time.Hour)}, "being replaced, stage 2 of 3: the next one issues, and the one before is believed until " + at(24*time.Hour) + ", for 24h0m", `{"good_until":"` + at(10*year) + `","stage":"issues","stage_ends":"` + at(24*time.Hour) + `"}`},
		"the end is due":    {map[string]string{"ca.crt": first + next, "stage": "issues", "stage-ends": at(-time.Second)}, "being replaced, stage 2 of 3: the next one issues, and the one before is believed for less than a minute", `{"good_until":"` + at(10*year) + `","stage":"issues","stage_ends":"` + at(-time.Second) + `"}`},
		"of a later one":    {map[string]string{"ca.crt": first, "stage": "shaken"}, `being replaced, stage "shaken"`, `{"good_until":"` + at(year) + `","stage":"shaken","stage_ends":null}`},
		"not there yet":     {nil, "none yet", `{"good_until":null,"stage":"","stage_ends":null}`},
		"not a certificate": {map[string]string{"ca.crt": "text"}, "none yet", `{"good_until":null,"stage":"","stage_ends":null}`},
	} {
		t.Run(name, func(t *testing.T) {
			data, _ := json.Marshal(test.data)
			manifests := fmt.Sprintf("%s---\n{apiVersion: v1, kind: ConfigMap, metadata: {name: tendril-authority, namespace: kube-system}, data: %s}\n", twoNodes, data)
			status := statusOf(t, manifests, map[string]*agentv1.StatusResponse{"a1": agentAt(7), "a2": agentAt(7)})
			var screen bytes.Buffer
			if err := showCluster(newView(&screen), status, now, false); err != nil {
				t.Fatal(err)
			}
			var lines []string
			for line := range strings.Lines(screen.String()) {
				if line, ok := strings.CutPrefix(line, "authority "); ok {
					lines = append(lines, strings.TrimSpace(line))
				}
			}
			if len(lines) != 1 || lines[0] != test.line {
				t.Errorf("got %q, want %q", lines, test.line)
			}
			if raw, _ := json.Marshal(status.Authority); string(raw) != test.json {
				t.Errorf("got %s, want %s", raw, test.json)
			}
		})
	}
}

// certificateUntil is an authority's, in PEM.
func certificateUntil(t *testing.T, until time.Time) string {
	t.Helper()
	public, private, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: until, IsCA: true, BasicConstraintsValid: true}
	raw, err := x509.CreateCertificate(nil, template, template, public, private)
	if err != nil {
		t.Fatal(err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: raw}))
}
