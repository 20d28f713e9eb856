package node

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sync/errgroup"

	"tendril.io/tendril/internal/cni"
)

// conflist is the name of our network configuration: runtimes take the first of their folder by name.
const conflist = "05-tendril.conflist"

// offer has the plugin's STATUS succeed and writes the network's configuration once the kernel is where the tables are: from then on the
// runtime sends pods. Both stay when the agent goes, and the plugin then waits for the next one.
func (a *Agent) offer(ctx context.Context, done *settled) error {
	for _, ready := range []<-chan struct{}{done.policies, done.services} {
		select {
		case <-ready:
		case <-ctx.Done():
			return nil
		}
	}
	if err := cni.MarkReady(a.config.cniSocket()); err != nil {
		return fmt.Errorf("mark the node as ready for the runtime: %w", err)
	}
	if a.config.CNIConfDir == "" {
		return nil
	}
	text, err := a.config.network()
	if err != nil {
		return err
	}
	path := filepath.Join(a.config.CNIConfDir, conflist)
	if known, err := os.ReadFile(path); err == nil && string(known) == string(text) {
		return nil
	}
	if err := replaceFile(path, text); err != nil {
		return fmt.Errorf("write the network's configuration: %w", err)
	}
	a.log.Info("pods are welcome", "configuration", path)
	return nil
}

// cniSocket is where the plugin finds this agent.
func (c Config) cniSocket() string { return filepath.Join(c.RunDir, "cni.sock") }

// network is the configuration that leads a runtime to this agent. Runtimes that know cniVersions take the newest that they know, and
// call STATUS and GC by it.
func (c Config) network() ([]byte, error) {
	plugin := map[string]any{"type": "tendril-cni", "capabilities": map[string]bool{"portMappings": true, "bandwidth": true}}
	if socket := c.cniSocket(); socket != cni.DefaultSocket {
		plugin["socket"] = socket
	}
	if c.StateDir != cni.DefaultDataDir {
		plugin["dataDir"] = c.StateDir
	}
	return json.MarshalIndent(map[string]any{
		"cniVersion": "1.0.0", "cniVersions": []string{"1.0.0", "1.1.0"}, "name": "tendril", "plugins": []any{plugin},
	}, "", "  ")
}

// ready says whether the kernel enforces what the agent knows of; if not, the error says what is missing. The store need not be
// there: what it said last is enforced without it.
func (a *Agent) ready(done *settled) error {
	for what, settled := range map[string]<-chan struct{}{"policies": done.policies, "services": done.services} {
		select {
		case <-settled:
		default:
			return fmt.Errorf("%s are not in the kernel yet", what)
		}
	}
	if force, wanted := a.policies.inForce.Load(), a.policies.latest.Load(); force < wanted {
		return fmt.Errorf("policy revision %d is in force, %d is wanted", force, wanted)
	}
	return nil
}

// serveReady answers whoever asks for the node's readiness over HTTP, until ctx ends.
func (a *Agent) serveReady(ctx context.Context, done *settled) error {
	if a.config.ReadyAddr == "" {
		return nil
	}
	listener, err := net.Listen("tcp", a.config.ReadyAddr)
	if err != nil {
		return fmt.Errorf("ready_addr: %w", err)
	}
	server := http.Server{
		ReadHeaderTimeout: time.Second,
		Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			if err := a.ready(done); err != nil {
				http.Error(w, err.Error(), http.StatusServiceUnavailable)
			}
		}),
	}
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error {
		if err := server.Serve(listener); !errors.Is(err, http.ErrServerClosed) {
			return err
		}
		return nil
	})
	group.Go(func() error {
		<-ctx.Done()
		return server.Close()
	})
	return group.Wait()
}
