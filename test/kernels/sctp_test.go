package kernels

import (
	"context"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"tendril.io/tendril/test/kernels/vm"
)

// TestServicesOverSCTP runs a lab in a guest: the machine's own kernel need not have SCTP, and Debian's has.
func TestServicesOverSCTP(t *testing.T) {
	dir := kernels(t)
	versions := supported()
	folder := filepath.Join(dir, versions[len(versions)-1])
	config := vm.Config{
		Kernel: filepath.Join(folder, "vmlinux"),
		Modules: vm.Modules(filepath.Join(folder, "modules"),
			"crc32c_generic", "libcrc32c", "udp_tunnel", "ip6_udp_tunnel", "sctp", "veth", "vxlan", "sch_ingress", "cls_bpf", "llc", "stp", "bridge"),
		Init:        build(t, "build", "./init"),
		Program:     build(t, "test", "-c", "../lab"),
		Arguments:   []string{"-test.run=^TestEveryCellOfServicesOverSCTP", "-test.v"},
		Environment: []string{"TENDRIL_TEST_BINARIES=/bin"},
		Files:       map[string]string{},
		MemoryMiB:   4096,
		CPUs:        2,
	}
	for _, name := range []string{"tendril", "tendril-agent", "tendril-cni"} {
		config.Files["/bin/"+name] = build(t, "build", "../../cmd/"+name)
	}
	if err := config.Programs("ip", "env", "sh"); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 8*time.Minute)
	defer cancel()
	output, err := vm.Run(ctx, config)
	if err != nil {
		t.Fatalf("%v\n%s", err, output)
	}
	for _, mode := range []string{"WithNativeRouting", "InVXLAN"} {
		if !strings.Contains(output, "--- PASS: TestEveryCellOfServicesOverSCTP"+mode+" ") {
			t.Errorf("%s did not pass in the guest:\n%s", mode, output)
		}
	}
}
