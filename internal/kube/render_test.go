package kube

import (
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"tendril.io/tendril/internal/policy"
)

// render prints a policy a line for each spec and rule, so that tests show a translation as a reader would say it.
func render(p policy.Policy) string {
	var out strings.Builder
	if p.Staged {
		out.WriteString("staged\n")
	}
	for _, spec := range p.Specs {
		var isolated []string
		for d, name := range []string{"ingress", "egress"} {
			if spec.Isolates[d] {
				isolated = append(isolated, name)
			}
		}
		fmt.Fprintf(&out, "%s: %s isolates [%s]%s\n", spec.Place, spec.Subject, strings.Join(isolated, " "), renderTier(spec))
		for _, rule := range spec.Rules {
			name := rule.Place
			if rule.Name != "" {
				name += fmt.Sprintf(" %q", rule.Name)
			}
			fmt.Fprintf(&out, "  %s: %s %s %s\n", name, []string{"deny", "allow", "redirect", "pass"}[rule.Action],
				[]string{"from", "to"}[rule.Direction], renderPeers(rule.Peers)+renderPorts(rule.Ports)+renderL7(rule.L7))
		}
	}
	return out.String()
}

// renderTier is empty for what most policies have.
func renderTier(s policy.Spec) string {
	if s.Tier == policy.TierNormal && s.Priority == 0 {
		return ""
	}
	return fmt.Sprintf(" in %s at %d", []string{"builtin", "admin", "normal", "baseline"}[s.Tier], s.Priority)
}

func renderGroup(g *policy.GroupRef) string {
	word := string(g.Kind) + " group " + g.Name
	if g.Labels != nil {
		word = string(g.Kind) + " groups with " + g.Labels.String()
	}
	if g.Namespace != "" {
		word += " of " + g.Namespace
	}
	if g.OutsideOnly {
		word = "outside " + word
	}
	for _, except := range g.Except {
		word += " but " + except.String()
	}
	return word
}

func renderNames(names policy.FQDN) string {
	if names.Pattern != "" {
		return "names like " + names.Pattern
	}
	return "name " + names.Name
}

// renderL7 prints whatever is set.
func renderL7(l7 *policy.L7) string {
	if l7 == nil {
		return ""
	}
	var words []string
	for _, r := range l7.HTTP {
		words = append(words, fmt.Sprintf("http %+v", r))
	}
	for _, r := range l7.Kafka {
		words = append(words, fmt.Sprintf("kafka %+v", r))
	}
	for _, names := range l7.DNS {
		words = append(words, "dns "+renderNames(names))
	}
	if l7.Protocol != "" {
		words = append(words, fmt.Sprintf("%s %v", l7.Protocol, l7.Fields))
	}
	if len(l7.ServerNames) > 0 {
		words = append(words, "tls "+strings.Join(l7.ServerNames, ","))
	}
	return " asking " + strings.Join(words, "; ")
}

func renderPeers(peers []policy.Peer) string {
	var words []string
	for _, p := range peers {
		switch {
		case p.Any:
			words = append(words, "anyone")
		case p.Selector != nil:
			words = append(words, "pods "+p.Selector.String())
		case p.Entity != policy.EntityNone:
			words = append(words, "entity "+string(p.Entity))
		case p.CIDR != nil:
			word := p.CIDR.Prefix.String()
			if p.CIDR.OutsideOnly {
				word = "outside " + word
			}
			for _, except := range p.CIDR.Except {
				word += " but " + except.String()
			}
			words = append(words, word)
		case p.Group != nil:
			words = append(words, renderGroup(p.Group))
		case p.FQDN != nil:
			words = append(words, renderNames(*p.FQDN))
		default:
			words = append(words, "NO PEER")
		}
	}
	return strings.Join(words, " or ")
}

func renderPorts(ports []policy.Port) string {
	if len(ports) == 0 {
		return ""
	}
	var words []string
	for _, p := range ports {
		switch {
		case p.Name != "":
			words = append(words, fmt.Sprintf("%d/%s", p.Protocol, p.Name))
		case p.First == 0 && p.Last == 65535:
			words = append(words, fmt.Sprintf("%d/any", p.Protocol))
		case p.First == p.Last:
			words = append(words, fmt.Sprintf("%d/%d", p.Protocol, p.First))
		default:
			words = append(words, fmt.Sprintf("%d/%d-%d", p.Protocol, p.First, p.Last))
		}
	}
	return " at " + strings.Join(words, " ")
}

// decodeOne decodes a manifest of one object.
func decodeOne(t *testing.T, manifest string) *Object {
	t.Helper()
	objects, err := Decode("test.yaml", []byte(manifest))
	if err != nil {
		t.Fatal(err)
	}
	if len(objects) != 1 {
		t.Fatalf("got %d objects, want 1", len(objects))
	}
	return objects[0]
}

// translation is a sentence about a manifest and the model that it must become.
type translation struct {
	sentence string
	spec     string // YAML below spec:, indented by two
	want     string
}

// checkTranslations puts each spec under a header and compares the translation's text.
func checkTranslations(t *testing.T, header string, tests []translation) {
	t.Helper()
	for _, test := range tests {
		t.Run(test.sentence, func(t *testing.T) {
			object := decodeOne(t, header+strings.Trim(test.spec, "\n")+"\n")
			p, err := object.Policy()
			if err != nil {
				t.Fatal(err)
			}
			want := strings.ReplaceAll(strings.TrimLeft(test.want, "\n"), "\t", "")
			if diff := cmp.Diff(want, render(p)); diff != "" {
				t.Errorf("translation (-want +got):\n%s", diff)
			}
			again, err := ParsePolicy(object.Kind, object.JSON, "test.yaml")
			if err != nil {
				t.Fatalf("what is stored must be readable: %v", err)
			}
			if diff := cmp.Diff(render(p), render(again)); diff != "" {
				t.Errorf("read back from the store (-want +got):\n%s", diff)
			}
		})
	}
}
