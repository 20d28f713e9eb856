package main

import (
	"io"
	"path/filepath"
	"strings"
	"testing"
)

// Nothing is asked and nothing made before every flag is right: a replica that waits for its turn would say it too late.
func TestFlagsThatCannotBeEndTheOperatorBeforeItAsksAnybody(t *testing.T) {
	for flags, want := range map[string]string{
		"":                                                      "[store store-dir] is required",
		"--store-dir DIR --store e:1":                           "[store store-dir]",
		"--store-dir DIR --store-ca x":                          "store-cert",
		"--store-dir DIR --replica=":                            "--replica: this machine has no name",
		"--store-dir DIR --namespace=":                          "--namespace: give the one",
		"--store-dir DIR --cluster a/b":                         `--cluster: "a/b" is no name of a cluster`,
		"--store-dir DIR --node-grace -1s":                      "--node-grace: -1s is less than nothing",
		"--store-dir DIR --identity-grace -1s":                  "--identity-grace: -1s is less than nothing",
		"--store-dir DIR --certificate-life 1h":                 "give --authority too",
		"--store-dir DIR --authority a --certificate-life 1s":   "--certificate-life: nobody can renew a certificate that lives for 1s",
		"--store-dir DIR --authority a --authority-spread -10m": "--authority-spread: in -10m0s nobody can hear",
		"--store-dir DIR --authority a --store-ca x --store-cert x --store-key x": "--authority and --store-ca: ",
		"--store-dir DIR --listen foo":                                            `--listen: "foo" is not host:port`,
		"--store-dir DIR --publish :x":                                            `--publish: ":x": "x" is not a port`,
		"--store-dir DIR --listen h:1 --publish h:1":                              "--publish: h:1 is where agents read (--listen)",
		"--store e":                    `--store: "e" is not host:port`,
		"--store-dir DIR --pod-pool x": `--pod-pool: pod pool "x": write NAME=PREFIX:BITS`,
		"--store-dir DIR --pod-pool a=10.0.0.0/16:24 --pod-pool a=10.1.0.0/16:24": `--pod-pool: there are two of the name "a"`,
	} {
		dir := filepath.Join(t.TempDir(), "store")
		c := command()
		c.SetArgs(append(strings.Fields(strings.ReplaceAll(flags, "DIR", dir)), "--kubeconfig", filepath.Join(dir, "none")))
		c.SetOut(io.Discard)
		c.SetErr(io.Discard)
		if err := c.ExecuteContext(t.Context()); err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "API server") {
			t.Errorf("%s: got %v, want %q", flags, err, want)
		}
	}
}

func TestEveryMistakeOfTheFlagsIsReportedAtOnce(t *testing.T) {
	c := command()
	c.SetArgs([]string{"--store-dir", t.TempDir(), "--cluster", "", "--node-grace", "-1s", "--listen", "foo", "--pod-pool", "x"})
	err := c.ExecuteContext(t.Context())
	if err == nil {
		t.Fatal("it ran")
	}
	for _, want := range []string{"--cluster: ", "--node-grace: ", "--listen: ", "--pod-pool: "} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want %s", err, want)
		}
	}
}
