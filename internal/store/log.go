package store

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"path/filepath"

	"google.golang.org/protobuf/proto"

	storev1 "tendril.io/tendril/api/store/v1"
)

// A logFile is an append-only file of writes to keys: the last write of a key counts. Both files that the client
// keeps are one: the snapshot of the store's records and the journal of the node's own keys.
//
// Layout: logMagic, then frames of {length uint32, crc32c uint32, sequence uint64, storev1.Write}, little endian;
// length counts what follows the checksum, which covers the same. Reading stops at the first frame that is not whole
// or not sound: that is where a crash tore the file, and what follows it is cut off.
type logFile struct {
	// Of the file; beside it are path.new while it is compacted, and path.bad.
	path    string
	file    *os.File
	writer  *bufio.Writer
	size    int64 // bytes in the file and the writer
	live    int64 // size right after the last compaction
	flushed int64 // size of the file
	// Reused from append to append.
	frame []byte
	write storev1.Write
}

const (
	logMagic    = "tendril log 1\n"
	frameHead   = 8
	maxFrame    = 4 << 20 // above etcd's largest request
	logSlack    = 1 << 20 // a log is compacted once it has more than twice its live bytes and this
	sequenceLen = 8
)

// crcTable is Castagnoli's polynomial, which processors compute.
func crcTable() *crc32.Table { return crc32.MakeTable(crc32.Castagnoli) }

// openLog reads the log, handing each write to each, and opens it for appending. A file that is not a log is set
// aside with the suffix .bad, never overwritten; torn says how many bytes were cut off or set aside.
func openLog(path string, each func(sequence uint64, w *storev1.Write)) (l *logFile, torn int64, err error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return nil, 0, fmt.Errorf("log %s: %w", path, err)
	}
	file, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, 0, fmt.Errorf("open log: %w", err)
	}
	l = &logFile{path: path, file: file}
	if torn, err = l.load(each); err != nil {
		return nil, torn, errors.Join(fmt.Errorf("read log %s: %w", path, err), file.Close())
	}
	l.writer = bufio.NewWriterSize(l.file, 64<<10)
	l.live, l.flushed = l.size, l.size
	return l, torn, nil
}

// load reads the whole file and leaves it positioned after the last sound frame.
func (l *logFile) load(each func(uint64, *storev1.Write)) (torn int64, err error) {
	info, err := l.file.Stat()
	if err != nil {
		return 0, err
	}
	// What is not sound is the end of the file: a frame is written in one piece, after all before it.
	sound, err := readLog(bufio.NewReaderSize(l.file, 64<<10), func(sequence uint64, w *storev1.Write, _ []byte) {
		each(sequence, w)
	})
	if err != nil {
		return 0, err
	}
	torn = info.Size() - sound
	if sound == 0 {
		return torn, l.begin(info.Size() > 0)
	}
	l.size = sound
	// Else the next append would stand behind what cannot be read.
	if err := l.file.Truncate(sound); err != nil {
		return torn, err
	}
	_, err = l.file.Seek(sound, io.SeekStart)
	return torn, err
}

// begin starts an empty log, setting aside what the file held if it was not one.
func (l *logFile) begin(foreign bool) error {
	if foreign {
		if err := os.Rename(l.path, l.path+".bad"); err != nil {
			return err
		}
		file, err := os.OpenFile(l.path, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
		if err != nil {
			return err
		}
		l.file.Close()
		l.file = file
	}
	l.size = int64(len(logMagic))
	_, err := l.file.WriteString(logMagic)
	return err
}

// readLog hands each sound frame to each and returns the length of the sound part; 0 if it is not a log at all. An
// error is one of reading, never of content.
func readLog(r io.Reader, each func(sequence uint64, w *storev1.Write, frame []byte)) (sound int64, err error) {
	magic := make([]byte, len(logMagic))
	if _, err := io.ReadFull(r, magic); err != nil || string(magic) != logMagic {
		return 0, ignoreEOF(err)
	}
	sound = int64(len(logMagic))
	var frame []byte
	for {
		frame, err = readFrame(r, frame)
		if err != nil || frame == nil {
			return sound, ignoreEOF(err)
		}
		var w storev1.Write
		if proto.Unmarshal(frame[frameHead+sequenceLen:], &w) != nil {
			return sound, nil
		}
		each(binary.LittleEndian.Uint64(frame[frameHead:]), &w, frame)
		sound += int64(len(frame))
	}
}

// readFrame reads a frame into buffer, growing it; nil if it is not sound.
func readFrame(r io.Reader, buffer []byte) ([]byte, error) {
	var head [frameHead]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return nil, err
	}
	length := int(binary.LittleEndian.Uint32(head[:]))
	// A torn length could ask for gigabytes.
	if length < sequenceLen || length > maxFrame {
		return nil, nil
	}
	if cap(buffer) < frameHead+length {
		buffer = make([]byte, frameHead+length)
	}
	buffer = buffer[:frameHead+length]
	copy(buffer, head[:])
	if _, err := io.ReadFull(r, buffer[frameHead:]); err != nil {
		return nil, err
	}
	if crc32.Checksum(buffer[frameHead:], crcTable()) != binary.LittleEndian.Uint32(head[4:]) {
		return nil, nil
	}
	return buffer, nil
}

func ignoreEOF(err error) error {
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return nil
	}
	return err
}

// append adds a write. It is in the file after flush, and on the disk after sync.
func (l *logFile) append(sequence uint64, key string, value []byte, remove bool) error {
	l.write.Key, l.write.Value, l.write.Remove = key, value, remove
	frame := append(l.frame[:0], make([]byte, frameHead)...)
	frame = binary.LittleEndian.AppendUint64(frame, sequence)
	frame, err := proto.MarshalOptions{}.MarshalAppend(frame, &l.write)
	if err != nil {
		return fmt.Errorf("log %s: key %q: %w", l.path, key, err)
	}
	if len(frame)-frameHead > maxFrame {
		return fmt.Errorf("log %s: key %q: %d bytes are more than a record may have", l.path, key, len(frame))
	}
	binary.LittleEndian.PutUint32(frame, uint32(len(frame)-frameHead))
	binary.LittleEndian.PutUint32(frame[4:], crc32.Checksum(frame[frameHead:], crcTable()))
	l.frame = frame
	if _, err := l.writer.Write(frame); err != nil {
		return errors.Join(err, l.flush())
	}
	l.size += int64(len(frame))
	return nil
}

// flush hands what was appended to the kernel: it survives the agent, not the machine. What a full disk refused is
// taken back whole, so that a later append finds a sound file.
func (l *logFile) flush() error {
	err := l.writer.Flush()
	if err == nil {
		l.flushed = l.size
		return nil
	}
	_, seek := l.file.Seek(l.flushed, io.SeekStart)
	l.writer.Reset(l.file)
	l.size = l.flushed
	return errors.Join(fmt.Errorf("write log %s: %w", l.path, err), l.file.Truncate(l.flushed), seek)
}

// sync waits until what was appended is on the disk.
func (l *logFile) sync() error { return errors.Join(l.flush(), l.file.Sync()) }

// close flushes and closes the file.
func (l *logFile) close() error { return errors.Join(l.sync(), l.file.Close()) }

// bloated says whether compaction would pay.
func (l *logFile) bloated() bool { return l.size > 2*l.live+logSlack }

// compact writes the last write of each key to a new file, which then takes the log's place in one step. Removals go
// too, unless keep wants them. It holds no value in memory, only where each key's last frame is.
func (l *logFile) compact(keep func(sequence uint64) bool) error {
	if err := l.flush(); err != nil {
		return err
	}
	last := make(map[string]uint64) // key -> count of the frame that is its last
	// Two passes over the file, both in its order; what is appended meanwhile waits for the caller's lock.
	count := uint64(0)
	err := l.scan(func(sequence uint64, w *storev1.Write, _ []byte) error {
		count++
		last[w.GetKey()] = count
		if w.GetRemove() && !keep(sequence) {
			delete(last, w.GetKey())
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("compact log: %w", err)
	}
	return l.replace(func(w io.Writer) error {
		at := uint64(0)
		return l.scan(func(_ uint64, write *storev1.Write, frame []byte) error {
			at++
			if last[write.GetKey()] != at {
				return nil
			}
			_, err := w.Write(frame)
			return err
		})
	})
}

// scan reads the log's file from its start, through a handle of its own.
func (l *logFile) scan(each func(uint64, *storev1.Write, []byte) error) error {
	file, err := os.Open(l.path)
	if err != nil {
		return err
	}
	defer file.Close()
	var failed error
	_, err = readLog(bufio.NewReaderSize(file, 256<<10), func(sequence uint64, w *storev1.Write, frame []byte) {
		if failed == nil {
			failed = each(sequence, w, frame)
		}
	})
	return errors.Join(err, failed)
}

// replace fills a new file, syncs it and renames it over the log.
func (l *logFile) replace(fill func(io.Writer) error) error {
	file, err := os.OpenFile(l.path+".new", os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	w := bufio.NewWriterSize(file, 256<<10)
	_, err = w.WriteString(logMagic)
	// On the disk before the name changes: a crash leaves the old log or the new one, never half of one.
	err = errors.Join(err, fill(w), w.Flush(), file.Sync())
	if err == nil {
		err = os.Rename(file.Name(), l.path)
	}
	if err != nil {
		return errors.Join(fmt.Errorf("compact log: %w", err), file.Close())
	}
	l.file.Close()
	l.file = file
	l.writer.Reset(file)
	l.size, err = file.Seek(0, io.SeekEnd)
	l.live, l.flushed = l.size, l.size
	return err
}
