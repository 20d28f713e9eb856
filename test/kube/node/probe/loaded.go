package main

import (
	"errors"
	"fmt"
	"strconv"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// loaded prints those of the ids that the kernel still has a program, or map, of.
func loaded(kind string, ids []string) error {
	command := map[string]uintptr{"prog": unix.BPF_PROG_GET_FD_BY_ID, "map": unix.BPF_MAP_GET_FD_BY_ID}[kind]
	if command == 0 {
		return fmt.Errorf("%q is neither prog nor map", kind)
	}
	for _, text := range ids {
		id, err := strconv.ParseUint(text, 10, 32)
		if err != nil {
			return err
		}
		question := struct{ id, next, flags uint32 }{id: uint32(id)} // union bpf_attr, linux/bpf.h
		fd, _, failed := unix.Syscall(unix.SYS_BPF, command, uintptr(unsafe.Pointer(&question)), unsafe.Sizeof(question))
		switch {
		case failed == 0:
			fmt.Println(text)
			if err := syscall.Close(int(fd)); err != nil {
				return err
			}
		case !errors.Is(failed, unix.ENOENT):
			return fmt.Errorf("%s %s: %w", kind, text, failed)
		}
	}
	return nil
}
