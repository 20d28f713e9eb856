package bpf

import (
	"bytes"
	"encoding/binary"
	"strings"
	"testing"
	"unsafe"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/btf"
	"golang.org/x/sys/unix"

	"tendril.io/tendril/internal/testkit"
)

// What programs say of a packet that they have sent on, from <linux/bpf.h> and <linux/pkt_cls.h>.
const (
	xdpTX         = 3
	tcActRedirect = 7
)

// edgeRepeat is how often one system call runs a program.
const edgeRepeat = 200_000

// BenchmarkEdge measures what a packet costs the node that leads a client to a backend of another node: by XDP and by TCX, each beside a
// program that does nothing but put the frame back as it was.
func BenchmarkEdge(b *testing.B) {
	needRoot(b)
	for _, packet := range []struct{ family, syn, synAck, ack string }{
		{"v4", "198.51.100.7:1000 > 192.0.2.1:30080", "10.2.0.2:8080 > 192.0.2.1:1000", "198.51.100.7:1000 > 192.0.2.1:30080"},
		{"v6", "[2001:db9::7]:1000 > [2001:db8::1]:30080", "[fd02::2]:8080 > [2001:db8::1]:1000", "[2001:db9::7]:1000 > [2001:db8::1]:30080"},
		{"answer_v4", "198.51.100.7:1000 > 192.0.2.1:30080", "10.2.0.2:8080 > 192.0.2.1:1000", "10.2.0.2:8080 > 192.0.2.1:1000"},
	} {
		for _, name := range []string{"xdp", "xdp_floor", "tcx", "tcx_floor"} {
			b.Run(name+"_"+packet.family, func(b *testing.B) {
				s := edgeStage(b) // of this goroutine's namespace
				for _, command := range []string{"net_in tcp " + packet.syn + " syn", "net_in tcp " + packet.synAck + " syn ack"} {
					if _, err := s.do(command); err != nil {
						b.Fatal(err)
					}
				}
				frame, err := frameOf("tcp " + packet.ack + " ack")
				if err != nil {
					b.Fatal(err)
				}
				s.repeatEdge(b, name, frame)
			})
		}
	}
}

// repeatEdge runs a program on a frame so often that the system call does not count.
func (s *stage) repeatEdge(b *testing.B, name string, frame []byte) {
	context, floor := new(bytes.Buffer), strings.HasSuffix(name, "_floor")
	var program *ebpf.Program
	want := uint32(xdpTX)
	if strings.HasPrefix(name, "xdp") {
		_ = binary.Write(context, binary.NativeEndian, xdpBuff{DataEnd: uint32(len(frame)), IngressIfIndex: 100})
		program = s.restoring(b, "xdp", "xdp_in", floor, xdpTX, frame)
	} else {
		want = tcActRedirect
		_ = binary.Write(context, binary.NativeEndian, skBuff{IfIndex: 100})
		program = s.restoring(b, "net", "net_in", floor, tcActRedirect, frame)
	}
	var total, runs uint64
	for b.Loop() {
		got, took, err := testRun(program, frame, context.Bytes(), edgeRepeat)
		if err != nil || got != want {
			b.Fatalf("the frame is not sent on: %d, %v", got, err)
		}
		total, runs = total+uint64(took), runs+1
	}
	b.ReportMetric(float64(total)/float64(runs), "ns/packet")
	b.ReportMetric(0, "ns/op")
}

// testRun is BPF_PROG_TEST_RUN with a context and the time that it says, in nanoseconds for each repetition: [ebpf.Program] has either.
func testRun(program *ebpf.Program, frame, context []byte, repeat uint32) (code, took uint32, err error) {
	const command = 10 // BPF_PROG_TEST_RUN of <linux/bpf.h>
	var attr struct {  // the part of union bpf_attr that is the command's
		program, code, size, sizeOut uint32
		data, dataOut                unsafe.Pointer
		repeat, took                 uint32
		contextSize, contextSizeOut  uint32
		context, contextOut          unsafe.Pointer
		flags, cpu, batch, _         uint32
	}
	attr.program, attr.repeat = uint32(program.FD()), repeat
	attr.size, attr.data = uint32(len(frame)), unsafe.Pointer(&frame[0])
	attr.contextSize, attr.context = uint32(len(context)), unsafe.Pointer(&context[0])
	for errno := unix.EINTR; errno == unix.EINTR; {
		_, _, errno = unix.Syscall(unix.SYS_BPF, command, uintptr(unsafe.Pointer(&attr)), unsafe.Sizeof(attr))
		if errno != 0 && errno != unix.EINTR {
			return 0, 0, errno
		}
	}
	return attr.code, attr.took, nil
}

// restoring is a program that writes the frame anew, since what has been sent on is not what came, and calls a program of an object; the
// floor returns code instead.
func (s *stage) restoring(b *testing.B, object, called string, floor bool, code int32, frame []byte) *ebpf.Program {
	spec, err := Load(object)
	if err != nil {
		b.Fatal(err)
	}
	shrink(spec)
	if err := spec.Variables["config"].Set(testConfig()); err != nil {
		b.Fatal(err)
	}
	like := spec.Programs[called]
	program := &ebpf.ProgramSpec{Name: "restoring", Type: like.Type, License: like.License}
	program.Instructions = restore(like.Type, frame, like.Instructions[0])
	if floor {
		program.Instructions = append(program.Instructions, asm.Mov.Imm(asm.R0, code), asm.Return())
	} else {
		functions, err := testkit.Functions(like.Instructions, called)
		if err != nil {
			b.Fatal(err)
		}
		program.Instructions = append(append(program.Instructions, testkit.Call(called), asm.Return()), functions...)
	}
	spec.Programs = map[string]*ebpf.ProgramSpec{"restoring": program}
	loaded, err := ebpf.NewCollectionWithOptions(spec, ebpf.CollectionOptions{MapReplacements: s.maps})
	if err != nil {
		b.Fatalf("%+v", err)
	}
	b.Cleanup(loaded.Close)
	return loaded.Programs["restoring"]
}

// restore writes the frame, and of a packet of the kernel the mark; the context is in R1 before and after. The verifier wants type and
// line of every function, so the program borrows those of like.
func restore(kind ebpf.ProgramType, frame []byte, like asm.Instruction) asm.Instructions {
	const data, dataEnd = 76, 80 // of struct __sk_buff; those of struct xdp_md are its first
	start, end := int16(data), int16(dataEnd)
	if kind == ebpf.XDP {
		start, end = 0, 4
	}
	code := asm.Instructions{
		btf.WithFuncMetadata(asm.LoadMem(asm.R2, asm.R1, start, asm.Word).WithSymbol("restoring"), btf.FuncMetadata(&like)).WithSource(like.Source()),
		asm.LoadMem(asm.R3, asm.R1, end, asm.Word),
		asm.Mov.Reg(asm.R4, asm.R2),
		asm.Add.Imm(asm.R4, int32(len(frame))),
		asm.JLE.Reg(asm.R4, asm.R3, "there"),
		asm.Mov.Imm(asm.R0, 0),
		asm.Return(),
		asm.Mov.Imm(asm.R0, 0).WithSymbol("there"),
	}
	if kind != ebpf.XDP {
		code = append(code, asm.StoreMem(asm.R1, 8, asm.R0, asm.Word)) // mark
	}
	for at := 0; at+2 <= len(frame); at += 2 {
		code = append(code, asm.StoreImm(asm.R2, int16(at), int64(binary.NativeEndian.Uint16(frame[at:])), asm.Half))
	}
	return code
}
