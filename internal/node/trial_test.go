package node

import (
	"strings"
	"testing"
	"time"

	"tendril.io/tendril/internal/policy"
)

var hostA, hostB = policy.Key{Kind: "CiliumClusterwideNetworkPolicy", Name: "a"}, policy.Key{Kind: "CiliumClusterwideNetworkPolicy", Name: "b"}

func hostVersion(digest string) hostPolicy {
	if digest == "" {
		return hostPolicy{}
	}
	return hostPolicy{Digest: digest, Specs: []policy.Spec{{Place: "spec"}}}
}

// Each line is a step: what the store has of a policy ("a=1", "a=" for gone), a publication with the store reachable
// ("publish") or not ("publish away"), seconds that pass ("+5"), an answer of the store to what is asked then ("answer").
// The result is what is enforced and in which state.
func TestATrial(t *testing.T) {
	for name, c := range map[string]struct{ steps, want string }{
		"goes on until the store answers":                {"a=1, publish", "a=1 trial"},
		"confirms what the store answers under":          {"a=1, publish, +5, answer", "a=1"},
		"lasts as long as it says":                       {"a=1, publish, +9", "a=1 trial"},
		"rolls the first version back to nothing":        {"a=1, publish, +10", "a= rolled back"},
		"rolls a change back to what was confirmed":      {"a=1, publish, answer, a=2, publish, +10", "a=1 rolled back"},
		"brings back a policy that had gone":             {"a=1, publish, answer, a=, publish, +10", "a=1 rolled back"},
		"is not repeated for what was rolled back":       {"a=1, publish, +10, publish, +10, answer", "a= rolled back"},
		"is had anew by the next version":                {"a=1, publish, +10, publish, a=2, publish", "a=2 trial"},
		"is had anew, and confirmed":                     {"a=1, publish, +10, publish, a=2, publish, answer", "a=2"},
		"blames nobody for a store that was away":        {"a=1, publish away, +100", "a=1 unconfirmed"},
		"confirms when a store that was away comes back": {"a=1, publish away, +100, answer", "a=1"},
		"starts again with another change":               {"a=1, publish, +9, b=1, publish, +9", "a=1 trial, b=1 trial"},
		"undoes all that was not confirmed":              {"a=1, publish, +9, b=1, publish, +10", "a= rolled back, b= rolled back"},
		"undoes no more than that":                       {"a=1, publish, answer, b=1, publish, +10", "a=1, b= rolled back"},
		"is over when the change is taken back":          {"a=1, publish, answer, a=2, publish, a=1, publish, +10", "a=1"},
		"wants an answer to a question asked under it":   {"a=1, ask, publish, heard, +1", "a=1 trial"},
	} {
		t.Run(name, func(t *testing.T) {
			trial, now := newTrial(10*time.Second), time.Unix(1000, 0)
			var asked time.Time
			publish := func(reachable bool) {
				var judging []policy.Key
				for _, key := range []policy.Key{hostA, hostB} {
					if trial.version(key).Digest != "" {
						judging = append(judging, key)
					}
				}
				trial.prepare(judging, reachable)
				trial.begin(now)
			}
			for step := range strings.SplitSeq(c.steps, ", ") {
				switch policyName, digest, set := strings.Cut(step, "="); {
				case set && policyName == "a":
					trial.set(hostA, hostVersion(digest))
				case set:
					trial.set(hostB, hostVersion(digest))
				case step == "publish":
					publish(true)
				case step == "publish away":
					publish(false)
				case step == "answer":
					trial.answered(now)
				case step == "ask":
					asked, now = now, now.Add(time.Second)
				case step == "heard":
					trial.answered(asked)
				default:
					passed, err := time.ParseDuration(strings.TrimPrefix(step, "+") + "s")
					if err != nil {
						t.Fatal(err)
					}
					if now = now.Add(passed); len(trial.expire(now)) > 0 {
						publish(true)
					}
				}
			}
			var got []string
			for policyName, key := range map[string]policy.Key{"a": hostA, "b": hostB} {
				if policyName == "b" && !strings.Contains(c.want, "b=") {
					continue
				}
				got = append(got, strings.TrimSpace(policyName+"="+trial.version(key).Digest+" "+trial.state(key)))
			}
			if len(got) == 2 && got[0] > got[1] {
				got[0], got[1] = got[1], got[0]
			}
			if text := strings.Join(got, ", "); text != c.want {
				t.Errorf("got %s, want %s", text, c.want)
			}
		})
	}
}
