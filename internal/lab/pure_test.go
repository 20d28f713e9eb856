package lab

import (
	"context"
	"errors"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestNamesOfOneLabAreNeverPrefixesOfAnothers(t *testing.T) {
	for _, name := range []string{"lab", "lab2", "demo"} {
		if !labName.MatchString(name) {
			t.Errorf("%q is refused as a lab's name", name)
		}
	}
	for _, name := range []string{"", "lab-2", "2lab", "Lab", "lab.x", "a/b", "..", strings.Repeat("a", 21)} {
		if labName.MatchString(name) {
			t.Errorf("%q is accepted as a lab's name", name)
		}
	}
	if strings.HasPrefix(names{"lab2"}.netns("node1"), names{"lab"}.netns("")) {
		t.Error("namespaces of lab2 look like those of lab")
	}
}

func TestEachNodeHasItsOwnPrefixesAndAddresses(t *testing.T) {
	seen := map[string]int{}
	for i := 1; i <= maxNodes; i++ {
		for _, prefix := range append(podCIDRs(byte(i)), fabricAddrs(byte(i))...) {
			if other, twice := seen[prefix.String()]; twice {
				t.Fatalf("nodes %d and %d both have %s", i, other, prefix)
			}
			seen[prefix.String()] = i
		}
		for _, prefix := range podCIDRs(byte(i)) {
			if prefix != prefix.Masked() {
				t.Errorf("node %d: %s has host bits", i, prefix)
			}
		}
	}
}

func TestPodAddressesLieInTheirPrefix(t *testing.T) {
	got := map[string]string{}
	for _, prefix := range podCIDRs(7) {
		got[prefix.String()] = podAddr(prefix, 42).String()
		if !prefix.Contains(podAddr(prefix, 254)) {
			t.Errorf("%s does not contain its own address %s", prefix, podAddr(prefix, 254))
		}
	}
	want := map[string]string{"10.244.7.0/24": "10.244.7.42", "fd44:0:0:7::/64": "fd44:0:0:7::2a"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("addresses (-want +got):\n%s", diff)
	}
}

func TestALabOfOneFamilyHasPrefixesOfThatFamilyOnly(t *testing.T) {
	l := &Lab{Config: Config{Nodes: 2, IPv6: true}}
	want := []string{"fd44:0:0:2::/64"}
	var got []string
	for _, prefix := range l.nodePodCIDRs("node2") {
		got = append(got, prefix.String())
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("prefixes (-want +got):\n%s", diff)
	}
}

func TestStatLinesAreReadPastAnyProcessName(t *testing.T) {
	tail := " 1 1 1 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 777 1000 2"
	for line, want := range map[string]struct {
		start   uint64
		running bool
	}{
		"42 (sleep) S" + tail:     {777, true},
		"42 (a b) R (x) R" + tail: {777, true},
		"42 (sleep) Z" + tail:     {777, false},
		"42 (sleep) X" + tail:     {777, false},
		"42 (sleep) Z" + strings.Replace(tail, " 20 0 1 ", " 20 0 2 ", 1): {777, true}, // another thread goes on
		"42 (sleep) S 1":           {0, false},
		"":                         {0, false},
		"42 (sleep" + tail + " 99": {0, false},
	} {
		start, running := parseStat(line)
		if start != want.start || running != want.running {
			t.Errorf("%q: start %d running %v, want %d %v", line, start, running, want.start, want.running)
		}
	}
}

func FuzzParseStat(f *testing.F) {
	f.Add("42 (sleep) S 1 1 1 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 777 1000 2")
	f.Add(") Z")
	f.Fuzz(func(t *testing.T, line string) {
		if _, running := parseStat(line); running && !strings.Contains(line, ")") {
			t.Errorf("%q counts as running", line)
		}
	})
}

func TestMountPointsAreFoundByType(t *testing.T) {
	const mountinfo = `22 1 254:0 / / rw,relatime - ext4 /dev/vda rw
30 25 0:26 / /sys/fs/cgroup ro shared:9 - tmpfs tmpfs rw
31 30 0:27 / /sys/fs/cgroup/unified rw,nosuid shared:10 master:2 - cgroup2 cgroup2 rw
32 30 0:28 / /elsewhere rw - cgroup2 cgroup2 rw
`
	if got, want := findMount(mountinfo, "cgroup2"), "/sys/fs/cgroup/unified"; got != want {
		t.Errorf("cgroup2 at %q, want %q", got, want)
	}
	for _, text := range []string{"", "x", "a b c - ", "1 2 3 - cgroup2"} {
		if got := findMount(text, "cgroup2"); got != "" {
			t.Errorf("%q: cgroup2 at %q, want nowhere", text, got)
		}
	}
}

func FuzzFindMount(f *testing.F) {
	f.Add("31 30 0:27 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw", "cgroup2")
	f.Fuzz(func(_ *testing.T, mountinfo, fstype string) { findMount(mountinfo, fstype) })
}

func TestResultsOfTheCNIAreRead(t *testing.T) {
	const result = `{"cniVersion":"1.1.0","ips":[{"address":"fd44:0:0:1::5/128"},{"address":"10.244.1.5/32","interface":0}]}`
	got, err := parseResult(result)
	want := []netip.Addr{netip.MustParseAddr("10.244.1.5"), netip.MustParseAddr("fd44:0:0:1::5")}
	if err != nil || !cmp.Equal(got, want, cmp.Comparer(func(a, b netip.Addr) bool { return a == b })) {
		t.Errorf("addresses %v, %v, want %v", got, err, want)
	}
	for raw, want := range map[string]string{"": "not JSON", "{}": "no address", `{"ips":[{"address":"1.2.3.4"}]}`: "not JSON"} {
		if _, err := parseResult(raw); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %s", raw, err, want)
		}
	}
}

func FuzzParseResult(f *testing.F) {
	f.Add(`{"ips":[{"address":"10.244.1.5/32"}]}`)
	f.Fuzz(func(t *testing.T, raw string) {
		if addrs, err := parseResult(raw); err == nil && len(addrs) == 0 {
			t.Error("no error and no address")
		}
	})
}

func TestWaitGivesTheLastReason(t *testing.T) {
	tries := 0
	err := Wait(t.Context(), "the moon", 30*time.Millisecond, func(context.Context) error {
		tries++
		return errors.New("it is day")
	})
	if err == nil || err.Error() != "wait 30ms for the moon: it is day" || tries < 3 {
		t.Errorf("after %d tries: %v", tries, err)
	}
	if err := Wait(t.Context(), "nothing", time.Second, func(context.Context) error { return nil }); err != nil {
		t.Errorf("wait for nothing: %v", err)
	}
}

func TestQuotesKeepTheLastLines(t *testing.T) {
	if got, want := quote("a\nb\nc\n", 2), "\n    b\n    c"; got != want {
		t.Errorf("quote %q, want %q", got, want)
	}
	if got := quote(" \n", 2); got != "" {
		t.Errorf("quote of nothing is %q", got)
	}
}

func TestAnswersOfTheWebServersAreRead(t *testing.T) {
	got, err := parseAnswer("web-1 sees 10.244.1.4\n0.0125")
	want := Answer{Name: "web-1", Sees: netip.MustParseAddr("10.244.1.4"), Took: 12500 * time.Microsecond}
	if err != nil || got != want {
		t.Errorf("%+v, %v, want %+v", got, err, want)
	}
	for _, text := range []string{"", "<html>", "web-1 sees me\n0.1", "web-1 sees 10.0.0.1\nsoon", "web-1 likes 10.0.0.1\n1"} {
		if _, err := parseAnswer(text); err == nil {
			t.Errorf("%q is read as an answer", text)
		}
	}
}

func FuzzParseAnswer(f *testing.F) {
	f.Add("web-1 sees 10.244.1.4\n0.0125")
	f.Fuzz(func(t *testing.T, text string) {
		if answer, err := parseAnswer(text); err == nil && (answer.Name == "" || !answer.Sees.IsValid()) {
			t.Errorf("%q: %+v", text, answer)
		}
	})
}
