package flow

import (
	"fmt"
	"net/netip"
	"strconv"
	"strings"
	"time"

	agentv1 "tendril.io/tendril/api/agent/v1"
	"tendril.io/tendril/bpf"
)

// Line is a record for people, in parts so that a terminal can colour them.
type Line struct {
	Time    string // time of day, to the millisecond
	Verdict string // allowed, dropped, proxied; for kinds that judge nothing: replied, ended, rejudged
	Path    string // who -> whom, protocol and service
	Why     string // the rules, or the drop's reason; for an ended flow what it carried; and what staged policies would change
}

// String is the line without colours.
func (l Line) String() string {
	return strings.TrimRight(fmt.Sprintf("%s %-8s %s  %s", l.Time, l.Verdict, l.Path, l.Why), " ")
}

// Describe puts a record into words; zone is the reader's time zone.
func Describe(f *agentv1.Flow, zone *time.Location) Line {
	return Line{
		Time:    time.Unix(0, f.GetTimeUnixNano()).In(zone).Format("15:04:05.000"),
		Verdict: verdictWord(f),
		Path:    path(f),
		Why:     strings.TrimSpace(why(f) + "  " + stagedText(f)),
	}
}

// verdictWord is the one word that a reader looks for.
func verdictWord(f *agentv1.Flow) string {
	switch {
	case f.GetVerdict() == VerdictDropped:
		return "dropped"
	case f.GetKind() == "end":
		return "ended"
	case f.GetKind() == "established":
		return "replied"
	case f.GetKind() == "verdict":
		return "rejudged"
	case f.GetVerdict() == VerdictRedirected:
		return "proxied"
	default:
		return "allowed"
	}
}

// path says who talks to whom, in which protocol and through which service.
func path(f *agentv1.Flow) string {
	ports := hasPorts(f.GetProtocol())
	text := PartyText(f.GetSource(), ports) + " -> " + PartyText(f.GetDestination(), ports) + " " + ProtocolName(f.GetProtocol())
	if f.GetServiceIp() == "" {
		return text
	}
	frontend := endText(f.GetServiceIp(), f.GetServicePort(), ports)
	if name := f.GetDestination().GetService(); name != "" {
		return text + " for service " + name + " at " + frontend
	}
	return text + " for service " + frontend
}

// PartyText names one side of a flow: a pod by its name, anything else by its address; and its identity.
func PartyText(p *agentv1.Party, port bool) string {
	name := partyPod(p)
	if name == "" {
		name = p.GetIp()
	}
	if name == "" {
		return "?"
	}
	text := endText(name, p.GetPort(), port)
	if identity := identityText(p.GetIdentity()); identity != "" {
		text += " (" + identity + ")"
	}
	return text
}

// identityDigits are enough of an identity's 32 digits to tell those of a cluster apart by eye.
const identityDigits = 8

// identityText is a reserved identity's name, or the beginning of the hash of a pod's labels.
func identityText(identity string) string {
	if name, reserved := strings.CutPrefix(identity, "reserved:"); reserved {
		return name
	}
	return identity[:min(len(identity), identityDigits)]
}

// endText joins a name or an address and a port.
func endText(name string, port uint32, show bool) string {
	if !show {
		return name
	}
	if addr, err := netip.ParseAddr(name); err == nil && addr.Is6() {
		name = "[" + name + "]"
	}
	return name + ":" + strconv.FormatUint(uint64(port), 10)
}

// why says who decided, or what ended the packet.
func why(f *agentv1.Flow) string {
	switch {
	case f.GetVerdict() == VerdictDropped:
		return dropText(f)
	case f.GetKind() == "end":
		return fmt.Sprintf("after %s: %s sent, %s received", time.Duration(f.GetDurationNs()).Round(time.Millisecond),
			traffic(f.GetForwardPackets(), f.GetForwardBytes()), traffic(f.GetReversePackets(), f.GetReverseBytes()))
	case f.GetKind() == "established":
		return ""
	}
	rules := rulesText(f)
	if f.GetNatPort() != 0 {
		rules = strings.TrimSpace(rules + "  masqueraded as port " + strconv.FormatUint(uint64(f.GetNatPort()), 10))
	}
	return rules
}

// dropText names the reason, what it means, and the rule if policy dropped the packet.
func dropText(f *agentv1.Flow) string {
	text := f.GetReason()
	for _, side := range sides(f) {
		if side.judgement.GetAction() == bpf.ActionDeny.String() {
			return text + " by " + side.direction + " " + RuleText(side.judgement)
		}
	}
	for _, reason := range bpf.Reasons() {
		if reason.String() == text {
			text += ": " + reason.About()
		}
	}
	return text
}

// stagedText says what staged policies would do otherwise, and which rule would.
func stagedText(f *agentv1.Flow) string {
	var changes []string
	for _, s := range []struct {
		direction   string
		now, staged *agentv1.Judgement
	}{{"egress", f.GetEgress(), f.GetStagedEgress()}, {"ingress", f.GetIngress(), f.GetStagedIngress()}} {
		if s.staged != nil && s.staged.GetAction() != s.now.GetAction() {
			changes = append(changes, WouldBe(s.staged)+" by "+s.direction+" "+RuleText(s.staged))
		}
	}
	if len(changes) == 0 {
		return ""
	}
	return "staged: " + strings.Join(changes, ", ")
}

// WouldBe says what would become of a packet that staged policies judged so.
func WouldBe(j *agentv1.Judgement) string {
	words := map[string]string{bpf.ActionAllow.String(): "allowed", bpf.ActionDeny.String(): "denied", bpf.ActionRedirect.String(): "proxied"}
	return "would be " + words[j.GetAction()]
}

// side is one direction's verdict, and its name.
type side struct {
	direction string
	judgement *agentv1.Judgement
}

// sides lists the directions that were judged on this node.
func sides(f *agentv1.Flow) []side {
	var judged []side
	for _, s := range []side{{"egress", f.GetEgress()}, {"ingress", f.GetIngress()}} {
		rule := s.judgement.GetRule()
		if s.judgement != nil && rule != uint32(bpf.RuleNone) && rule != uint32(bpf.RuleOutsideScope) {
			judged = append(judged, s)
		}
	}
	return judged
}

// rulesText names the rules that let a flow pass. That nothing is restricted is only worth a word if it is all there
// is to say.
func rulesText(f *agentv1.Flow) string {
	var said, unsaid []string
	for _, s := range sides(f) {
		if s.judgement.GetRule() == uint32(bpf.RuleDefaultAllow) {
			unsaid = append(unsaid, s.direction)
			continue
		}
		said = append(said, s.direction+" "+RuleText(s.judgement))
	}
	switch {
	case len(said) > 0:
		return "by " + strings.Join(said, ", ")
	case len(unsaid) > 0:
		return "no policy restricts " + strings.Join(unsaid, " or ")
	}
	return ""
}

// RuleText names a rule and its place in its object.
func RuleText(j *agentv1.Judgement) string {
	return strings.TrimSpace(j.GetRuleName() + " " + j.GetPlace())
}

// traffic says packets and bytes.
func traffic(packets, bytes uint64) string {
	unit := "packets"
	if packets == 1 {
		unit = "packet"
	}
	return fmt.Sprintf("%d %s (%s)", packets, unit, BytesText(bytes))
}

// BytesText is a number of bytes in the largest binary unit of which there is at least one.
func BytesText(n uint64) string {
	if n < 1024 {
		return strconv.FormatUint(n, 10) + " B"
	}
	value, unit := float64(n), ""
	for _, unit = range []string{"KiB", "MiB", "GiB", "TiB", "PiB", "EiB"} {
		if value /= 1024; value < 1024 {
			break
		}
	}
	return strconv.FormatFloat(value, 'f', 1, 64) + " " + unit
}
