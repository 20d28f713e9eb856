package lab

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// nginxConf serves one line, which says who answers and whom it sees. One process, no access log, connections kept for
// as long as anybody wants to watch them.
const nginxConf = `daemon off;
master_process off;
pid nginx.pid;
error_log stderr warn;
events { worker_connections 4096; }
http {
  access_log off;
  client_body_temp_path body;
  proxy_temp_path proxy;
  fastcgi_temp_path fastcgi;
  uwsgi_temp_path uwsgi;
  scgi_temp_path scgi;
  keepalive_requests 100000000;
  keepalive_timeout 3600s;
  server {
    listen PORT;
    listen [::]:PORT;
    location / {
      default_type text/plain;
      return 200 "NAME sees $remote_addr\n";
    }
  }
}
`

// StartNginx starts a web server in a place and waits until it listens. It answers every request with one line, "NAME
// sees ADDRESS".
func (l *Lab) StartNginx(ctx context.Context, place Place, name string, port uint16) (*Process, error) {
	folder := l.state("nginx", fileName(place.Name)+"-"+strconv.Itoa(int(port)))
	if err := os.MkdirAll(folder, 0o755); err != nil {
		return nil, fmt.Errorf("nginx in %s: %w", place.Name, err)
	}
	text := strings.NewReplacer("PORT", strconv.Itoa(int(port)), "NAME", name).Replace(nginxConf)
	if err := os.WriteFile(filepath.Join(folder, "nginx.conf"), []byte(text), 0o644); err != nil {
		return nil, fmt.Errorf("nginx in %s: %w", place.Name, err)
	}
	return l.serve(ctx, place, port, "nginx", "-p", folder, "-c", "nginx.conf")
}

// StartIperf starts an iperf3 server on its usual port and waits until it listens.
func (l *Lab) StartIperf(ctx context.Context, place Place) (*Process, error) {
	return l.serve(ctx, place, 5201, "iperf3", "-s", "--forceflush")
}

// StartEcho starts the lab's echo server, which probes talk to.
func (l *Lab) StartEcho(ctx context.Context, place Place, port uint16) (*Process, error) {
	return l.serve(ctx, place, port, l.tendril(), "lab", "echo", "--port", strconv.Itoa(int(port)))
}

// StartDNS starts the lab's name server; names are as ParseNames reads them.
func (l *Lab) StartDNS(ctx context.Context, place Place, names ...string) (*Process, error) {
	process, err := l.Start(place, "", append([]string{l.tendril(), "lab", "dns"}, names...)...)
	if err != nil {
		return nil, err
	}
	return process, l.waitListening(ctx, process, "udp", 53)
}

func (l *Lab) tendril() string { return filepath.Join(l.BinDir, "tendril") }

// serve starts a TCP server and waits until it listens.
func (l *Lab) serve(ctx context.Context, place Place, port uint16, argv ...string) (*Process, error) {
	if _, err := exec.LookPath(argv[0]); err != nil {
		return nil, fmt.Errorf("%s in %s: %w: install it", argv[0], place.Name, err)
	}
	process, err := l.Start(place, "", argv...)
	if err != nil {
		return nil, err
	}
	return process, l.waitListening(ctx, process, "tcp", port)
}

// waitListening waits until the kernel shows a socket on the port in the process's namespace. It sends nothing, so that
// a server's first client is the test's own.
func (l *Lab) waitListening(ctx context.Context, process *Process, protocol string, port uint16) error {
	what := fmt.Sprintf("%s on port %d", process.Name, port)
	err := Wait(ctx, what, 10*time.Second, func(context.Context) error {
		if !process.Alive() {
			return errors.New("it has ended")
		}
		return l.listening(process.Place, protocol, port)
	})
	if err != nil {
		return fmt.Errorf("%w%s", err, process.quoteLog(5))
	}
	return nil
}

// listening looks for the port in proc_pid_net(5) of the namespace.
func (l *Lab) listening(place Place, protocol string, port uint16) error {
	return inNetns(place.Netns, func() error {
		for _, family := range []string{"", "6"} {
			raw, err := os.ReadFile("/proc/thread-self/net/" + protocol + family)
			if err == nil && hasListener(string(raw), port) {
				return nil
			}
		}
		return fmt.Errorf("nobody listens on %s port %d", protocol, port)
	})
}

// hasListener reads the table of sockets: the second column is the local address and port in hexadecimal, the third
// the remote one, which is zero where the socket listens.
func hasListener(sockets string, port uint16) bool {
	suffix := fmt.Sprintf(":%04X", port)
	for line := range strings.Lines(sockets) {
		fields := strings.Fields(line)
		if len(fields) > 3 && strings.HasSuffix(fields[1], suffix) && strings.HasSuffix(fields[2], ":0000") {
			return true
		}
	}
	return false
}

// Dial opens a connection from a place, for tests and programs that need a socket of their own there.
func (p Place) Dial(ctx context.Context, network, address string) (net.Conn, error) {
	var conn net.Conn
	err := inNetns(p.Netns, func() (err error) {
		conn, err = (&net.Dialer{}).DialContext(ctx, network, address)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("%s: dial %s: %w", p.Name, address, err)
	}
	return conn, nil
}
