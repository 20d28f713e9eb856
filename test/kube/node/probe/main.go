// Command probe is the one program in the images of the test cluster's pods: a sandbox's first process, a server and clients. It also looks
// for what is left in the kernel.
package main

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/signal"
	"syscall"
	"time"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "probe:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	switch {
	case len(args) == 0:
		pause()
		return nil
	case len(args) == 1 && args[0] == "serve":
		return serve()
	case len(args) == 2 && args[0] == "get":
		return get(args[1])
	case len(args) == 2 && args[0] == "load":
		return load(args[1])
	case len(args) == 5 && args[0] == "call":
		return call(args[1], args[2], args[3], args[4])
	case len(args) > 1 && args[0] == "loaded":
		return loaded(args[1], args[2:])
	}
	return errors.New("usage: probe [serve | get URL | load URL | call URL CA CERTIFICATE MESSAGE | loaded prog|map ID...]")
}

// pause is the first process of a process namespace: it waits for its end and collects the children of the dead.
func pause() {
	signals := make(chan os.Signal, 8)
	signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM, syscall.SIGCHLD)
	for got := range signals {
		if got != syscall.SIGCHLD {
			return
		}
		for {
			if pid, err := syscall.Wait4(-1, nil, syscall.WNOHANG, nil); pid <= 0 || err != nil {
				break
			}
		}
	}
}

// serve says who answers.
func serve() error {
	name, err := os.Hostname()
	if err != nil {
		return err
	}
	return http.ListenAndServe(":8080", http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprintln(w, name)
	}))
}

// get prints what a server answers within two seconds.
func get(url string) error {
	client := http.Client{Timeout: 2 * time.Second}
	response, err := client.Get(url)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	_, err = io.Copy(os.Stdout, response.Body)
	return err
}
