package bpf

import "testing"

// sizeLimits are instructions by program, some room above what they are now: whoever crosses one has made the datapath larger
// and should know it. The kernel's own limit is a million looked at, which costs load time, not packets.
func sizeLimits() map[string]int {
	return map[string]int{
		"from_pod": 9300, "to_pod": 4650, "net_in": 11000, "net_out": 10600, "loop_out": 7400, "tunnel_in": 9300, "tunnel_out": 6400,
		"connect4": 640, "connect6": 690, "sendmsg4": 580, "sendmsg6": 640, "recvmsg4": 70, "recvmsg6": 80,
		"getpeername4": 70, "getpeername6": 80, "reset_tcp": 120, "reset_udp": 120, "sweep_keys": 2100, "sweep_all": 450,
		"xdp_in": 2200,
	}
}

func TestProgramsStayWithinTheirSize(t *testing.T) {
	limits := sizeLimits()
	for _, object := range Objects() {
		for name, program := range load(t, object).Programs {
			limit, known := limits[name]
			if !known {
				t.Errorf("%s: program %s has no limit here", object, name)
			}
			if got := len(program.Instructions); got > limit {
				t.Errorf("%s has %d instructions, limit %d", name, got, limit)
			}
			delete(limits, name)
		}
	}
	for name := range limits {
		t.Errorf("program %s has a limit and does not exist", name)
	}
}
