package cni

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"

	"golang.org/x/sys/unix"
)

// maxFrame bounds a frame's JSON. Configurations are hundreds of bytes; GC lists every container of a node.
const maxFrame = 4 << 20

const headerSize = 4

// Reply is the answer to a request: a result in the JSON of the request's version, an error, or neither.
type Reply struct {
	Result json.RawMessage `json:"result,omitempty"`
	Error  *Error          `json:"error,omitempty"`
}

// writeFrame sends a value; with netns, its descriptor rides on the header.
func writeFrame(conn *net.UnixConn, value any, netns *os.File) error {
	body, err := json.Marshal(value)
	if err != nil {
		return err
	}
	if len(body) > maxFrame {
		return fmt.Errorf("message of %d bytes is longer than %d", len(body), maxFrame)
	}
	frame := binary.BigEndian.AppendUint32(make([]byte, 0, headerSize+len(body)), uint32(len(body)))
	frame = append(frame, body...)
	if netns == nil {
		_, err = conn.Write(frame)
		return err
	}
	rights := unix.UnixRights(int(netns.Fd()))
	if _, _, err := conn.WriteMsgUnix(frame[:headerSize], rights, nil); err != nil {
		return err
	}
	_, err = conn.Write(frame[headerSize:])
	return err
}

// readFrame receives a value, and the descriptor that came along, if any.
func readFrame(conn *net.UnixConn, value any) (*os.File, error) {
	var header [headerSize]byte
	control := make([]byte, unix.CmsgSpace(4))
	n, controlled, flags, _, err := conn.ReadMsgUnix(header[:], control)
	if err != nil {
		return nil, err
	}
	file, err := receivedFile(control[:controlled], flags)
	if err != nil {
		return nil, err
	}
	if err := readBody(conn, header, n, value); err != nil {
		closeFile(file)
		return nil, err
	}
	return file, nil
}

// readBody reads what is left of the header, of which the first read may have brought any part, and then the JSON. The
// size is checked before memory is taken for it.
func readBody(conn io.Reader, header [headerSize]byte, have int, value any) error {
	if _, err := io.ReadFull(conn, header[have:]); err != nil {
		return err
	}
	size := binary.BigEndian.Uint32(header[:])
	if size > maxFrame {
		return fmt.Errorf("message of %d bytes is longer than %d", size, maxFrame)
	}
	body := make([]byte, size)
	if _, err := io.ReadFull(conn, body); err != nil {
		return err
	}
	return json.Unmarshal(body, value)
}

// receivedFile takes the one descriptor out of a control message. More than one is refused; those that the kernel has
// handed over all the same are closed.
func receivedFile(control []byte, flags int) (*os.File, error) {
	messages, err := unix.ParseSocketControlMessage(control)
	if err != nil {
		return nil, err
	}
	var files []*os.File
	for i := range messages {
		fds, err := unix.ParseUnixRights(&messages[i])
		if err != nil {
			continue // not descriptors
		}
		for _, fd := range fds {
			files = append(files, os.NewFile(uintptr(fd), "netns"))
		}
	}
	if flags&unix.MSG_CTRUNC != 0 || len(files) > 1 {
		for _, file := range files {
			file.Close()
		}
		return nil, errors.New("more than one descriptor came with a message")
	}
	if len(files) == 0 {
		return nil, nil
	}
	return files[0], nil
}

// closeFile closes a descriptor that may not have come.
func closeFile(file *os.File) {
	if file != nil {
		file.Close()
	}
}
