package netlink

import (
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"golang.org/x/sys/unix"
)

// conn is a netlink socket that sends batches: many messages in one system call, and all their answers read after
// it. The kernel runs the messages of a batch one after the other before the call returns.
type conn struct {
	fd       int
	sequence uint32
	spoilt   bool // answers may be left in the socket
	buffer   []byte
}

// message is one request. What names it in errors.
type message struct {
	what  string
	kind  uint16 // RTM_*, or SOCK_DESTROY of sock_diag
	flags uint16 // besides NLM_F_REQUEST and NLM_F_ACK
	body  []byte
	// absent and present are outcomes that are as good as success.
	absent, present bool
}

// answerTime bounds the wait for an answer, which is there when send returns unless the kernel is out of memory.
const answerTime = 10 * time.Second

// dial opens a socket of a netlink family (NETLINK_*) in the thread's network namespace.
func dial(family int) (*conn, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, family)
	if err != nil {
		return nil, fmt.Errorf("open netlink: %w", err)
	}
	timeout := unix.NsecToTimeval(answerTime.Nanoseconds())
	err = errors.Join(
		unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}),
		unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &timeout),
		unix.SetsockoptInt(fd, unix.SOL_NETLINK, unix.NETLINK_EXT_ACK, 1),
		unix.SetsockoptInt(fd, unix.SOL_NETLINK, unix.NETLINK_CAP_ACK, 1),
	)
	if err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("set up netlink: %w", err)
	}
	return &conn{fd: fd, buffer: make([]byte, 32<<10)}, nil
}

func (c *conn) close() { unix.Close(c.fd) }

// do sends a batch and returns, for each message that asked for data, its body in order. All messages are run; the
// error is that of the first that failed.
func (c *conn) do(batch ...message) ([][]byte, error) {
	first := c.sequence + 1
	var out []byte
	for _, m := range batch {
		c.sequence++
		out = m.append(out, c.sequence)
	}
	c.spoilt = true
	if err := unix.Sendto(c.fd, out, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return nil, fmt.Errorf("%s: send: %w", batch[0].what, err)
	}
	data, err := c.answers(batch, first)
	return data, err
}

// answers reads until every message has its acknowledgement.
func (c *conn) answers(batch []message, first uint32) ([][]byte, error) {
	var data [][]byte
	var failed error
	for done := 0; done < len(batch); {
		n, _, err := unix.Recvfrom(c.fd, c.buffer, 0)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("%s: receive: %w", batch[done].what, err)
		}
		for answer := range packets(c.buffer[:n]) {
			if answer.sequence-first >= uint32(len(batch)) {
				continue // of an earlier use of the socket
			}
			m := &batch[answer.sequence-first]
			if answer.kind != unix.NLMSG_ERROR {
				data = append(data, append([]byte(nil), answer.body...))
				continue
			}
			done++
			if err := m.outcome(answer); err != nil && failed == nil {
				failed = err
			}
		}
	}
	c.spoilt = false
	return data, failed
}

// append writes the message behind a netlink header (linux/netlink.h, struct nlmsghdr).
func (m *message) append(out []byte, sequence uint32) []byte {
	size := unix.SizeofNlMsghdr + len(m.body)
	out = binary.NativeEndian.AppendUint32(out, uint32(size))
	out = binary.NativeEndian.AppendUint16(out, m.kind)
	out = binary.NativeEndian.AppendUint16(out, m.flags|unix.NLM_F_REQUEST|unix.NLM_F_ACK)
	out = binary.NativeEndian.AppendUint32(out, sequence)
	out = binary.NativeEndian.AppendUint32(out, 0) // port: the kernel knows the sender
	return pad(append(out, m.body...))
}

// outcome reads an acknowledgement (struct nlmsgerr, then attributes if NLM_F_ACK_TLVS is set).
func (m *message) outcome(answer packet) error {
	if len(answer.body) < 4 {
		return fmt.Errorf("%s: acknowledgement of %d bytes", m.what, len(answer.body))
	}
	errno := unix.Errno(-int32(binary.NativeEndian.Uint32(answer.body)))
	switch {
	case errno == 0,
		m.absent && (errno == unix.ENODEV || errno == unix.ENOENT || errno == unix.ESRCH),
		m.present && errno == unix.EEXIST:
		return nil
	}
	if text := answer.text(); text != "" {
		return fmt.Errorf("%s: %w (%s)", m.what, errno, text)
	}
	return fmt.Errorf("%s: %w", m.what, errno)
}

// packet is one message of the kernel.
type packet struct {
	kind, flags uint16
	sequence    uint32
	body        []byte
}

// packets cuts a datagram into messages and stops at the first that is not whole.
func packets(datagram []byte) func(yield func(packet) bool) {
	return func(yield func(packet) bool) {
		for len(datagram) >= unix.SizeofNlMsghdr {
			size := int(binary.NativeEndian.Uint32(datagram))
			if size < unix.SizeofNlMsghdr || size > len(datagram) {
				return
			}
			p := packet{
				kind:     binary.NativeEndian.Uint16(datagram[4:]),
				flags:    binary.NativeEndian.Uint16(datagram[6:]),
				sequence: binary.NativeEndian.Uint32(datagram[8:]),
				body:     datagram[unix.SizeofNlMsghdr:size],
			}
			if !yield(p) {
				return
			}
			datagram = datagram[min(aligned(size), len(datagram)):]
		}
	}
}

// text is the kernel's explanation of an error, where it gives one (NLMSGERR_ATTR_MSG).
func (p packet) text() string {
	const (
		ackTLVs = 0x200 // NLM_F_ACK_TLVS
		header  = 4 + unix.SizeofNlMsghdr
	)
	if p.flags&ackTLVs == 0 || len(p.body) < header {
		return ""
	}
	for kind, value := range attributes(p.body[header:]) {
		if kind == unix.NLMSGERR_ATTR_MSG && len(value) > 0 {
			return string(value[:len(value)-1])
		}
	}
	return ""
}

// attributes iterates over a run of attributes (struct nlattr), and stops at the first that is not whole.
func attributes(run []byte) func(yield func(kind uint16, value []byte) bool) {
	return func(yield func(uint16, []byte) bool) {
		for len(run) >= unix.SizeofNlAttr {
			size := int(binary.NativeEndian.Uint16(run))
			if size < unix.SizeofNlAttr || size > len(run) {
				return
			}
			kind := binary.NativeEndian.Uint16(run[2:]) &^ (unix.NLA_F_NESTED | unix.NLA_F_NET_BYTEORDER)
			if !yield(kind, run[unix.SizeofNlAttr:size]) {
				return
			}
			run = run[min(aligned(size), len(run)):]
		}
	}
}

// attribute appends one attribute.
func attribute(out []byte, kind uint16, value []byte) []byte {
	out = binary.NativeEndian.AppendUint16(out, uint16(unix.SizeofNlAttr+len(value)))
	out = binary.NativeEndian.AppendUint16(out, kind)
	return pad(append(out, value...))
}

// attribute32 appends a number in the byte order of the machine, as rtnetlink has nearly all of them.
func attribute32(out []byte, kind uint16, value uint32) []byte {
	return attribute(out, kind, binary.NativeEndian.AppendUint32(nil, value))
}

// attributeText appends a text with its final zero, which NLA_NUL_STRING wants.
func attributeText(out []byte, kind uint16, value string) []byte {
	return attribute(out, kind, append([]byte(value), 0))
}

// nest appends an attribute that holds attributes.
func nest(out []byte, kind uint16, inner []byte) []byte {
	return attribute(out, kind|unix.NLA_F_NESTED, inner)
}

// Netlink aligns everything to 4 bytes.
func aligned(size int) int { return (size + 3) &^ 3 }

// pad fills up with zeros; the length in the header before them does not count these.
func pad(out []byte) []byte {
	return append(out, make([]byte, aligned(len(out))-len(out))...)
}
