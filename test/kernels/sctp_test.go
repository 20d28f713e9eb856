package kernels

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"tendril.io/tendril/test/kernels/vm"
)

// TestServicesOverSCTP runs a lab in a guest: the machine's own kernel need not have SCTP, and Debian's has.
func TestServicesOverSCTP(t *testing.T) {
	versions := supported()
	config := labGuest(t, versions[len(versions)-1], "sctp")
	runLab(t, config, "TestEveryCellOfServicesOverSCTPWithNativeRouting", "TestEveryCellOfServicesOverSCTPInVXLAN")
}

// labGuest is a guest for tests of test/lab, with more modules of its kernel than all need. What the kernel has built in is no module.
func labGuest(t *testing.T, version string, modules ...string) vm.Config {
	t.Helper()
	folder := filepath.Join(kernels(t), version)
	modules = append([]string{"crc32c_generic", "libcrc32c", "udp_tunnel", "ip6_udp_tunnel", "veth", "vxlan", "sch_ingress", "cls_bpf", "llc", "stp", "bridge"}, modules...)
	config := vm.Config{
		Kernel:      filepath.Join(folder, "vmlinux"),
		Init:        build(t, "build", "./init"),
		Program:     build(t, "test", "-c", "../lab"),
		Environment: []string{"TENDRIL_TEST_BINARIES=/bin"},
		Files:       map[string]string{},
		MemoryMiB:   4096,
		CPUs:        2,
	}
	for _, module := range vm.Modules(filepath.Join(folder, "modules"), modules...) {
		if _, err := os.Stat(module); !errors.Is(err, fs.ErrNotExist) {
			config.Modules = append(config.Modules, module)
		}
	}
	for _, name := range []string{"tendril", "tendril-agent", "tendril-cni"} {
		config.Files["/bin/"+name] = build(t, "build", "../../cmd/"+name)
	}
	if err := config.Programs("ip", "env", "sh", "cat"); err != nil {
		t.Fatal(err)
	}
	return config
}

// runLab runs tests of test/lab in a guest, and wants each of them to pass.
func runLab(t *testing.T, config vm.Config, names ...string) {
	t.Helper()
	config.Arguments = []string{"-test.run=^(" + strings.Join(names, "|") + ")$", "-test.v"}
	ctx, cancel := context.WithTimeout(t.Context(), 15*time.Minute)
	defer cancel()
	output, err := vm.Run(ctx, config)
	if err != nil {
		t.Fatalf("%v\n%s", err, output)
	}
	for _, name := range names {
		if !strings.Contains(output, "--- PASS: "+name+" ") {
			t.Errorf("%s did not pass in the guest:\n%s", name, output)
		}
	}
}
