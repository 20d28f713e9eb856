// Command tendril-cni is the CNI plugin: it hands the runtime's request to the node's agent and prints the answer. See
// the package internal/cni for the protocol on both sides.
//
// While the agent is away, ADD waits a little and then asks the runtime to try again; DEL is queued for the agent and
// succeeds, because a pod that goes must not wait for it; STATUS succeeds, because the node is in order.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"time"

	"tendril.io/tendril/internal/cni"
)

const (
	// addPatience is how long ADD waits for an agent that is being restarted, and GC, which runtimes call once, when they start.
	addPatience = 10 * time.Second
	// delPatience is short: there is the queue.
	delPatience = 200 * time.Millisecond
	// answerTime bounds the whole command; runtimes give up later than that.
	answerTime = 60 * time.Second
)

func main() {
	ctx, cancel := context.WithTimeout(context.Background(), answerTime)
	defer cancel()
	os.Exit(run(ctx, os.Getenv, os.Stdin, os.Stdout))
}

// run does one command and returns the exit status. Everything a runtime reads goes to stdout, errors included
// (section 5, "Error").
func run(ctx context.Context, getenv func(string) string, stdin io.Reader, stdout io.Writer) int {
	output, err := answer(ctx, getenv, stdin)
	if err == nil {
		_, err = stdout.Write(output)
		if err == nil {
			return 0
		}
	}
	report(stdout, cni.AsError(err))
	return 1
}

// report prints an error as the specification wants it, with the newest version: the request may have had none.
func report(stdout io.Writer, failure *cni.Error) {
	versions := cni.Versions()
	// Nobody is left to be told that standard output is closed: the exit status says the rest.
	_ = json.NewEncoder(stdout).Encode(struct {
		CNIVersion string `json:"cniVersion"`
		*cni.Error
	}{versions[len(versions)-1], failure})
}

func answer(ctx context.Context, getenv func(string) string, stdin io.Reader) ([]byte, error) {
	const maxConfig = 2 << 20
	config, err := io.ReadAll(io.LimitReader(stdin, maxConfig))
	if err != nil {
		return nil, cni.Errorf(cni.CodeIO, "read network configuration", "%v", err)
	}
	raw := cni.FromEnvironment(getenv, config)
	if raw.Command == cni.Version {
		return version(config)
	}
	request, err := raw.Parse()
	if err != nil {
		return nil, err
	}
	if request.Command == cni.Status {
		return nil, cni.CheckReady(request.Config.Socket)
	}
	netns, err := openNetns(request)
	if err != nil {
		return nil, err
	}
	if netns != nil {
		defer netns.Close()
	}
	if request.Command == cni.Del {
		return nil, remove(ctx, &raw, request, netns)
	}
	return ask(ctx, &raw, request, netns)
}

// version answers VERSION, the one command that needs no agent and no complete configuration.
func version(config []byte) ([]byte, error) {
	versions := cni.Versions()
	answer := struct {
		CNIVersion        string   `json:"cniVersion"`
		SupportedVersions []string `json:"supportedVersions"`
	}{versions[len(versions)-1], versions}
	var asked struct {
		CNIVersion string `json:"cniVersion"`
	}
	if err := json.Unmarshal(config, &asked); err != nil {
		return nil, cni.Errorf(cni.CodeDecode, "network configuration is not valid JSON", "%v", err)
	}
	if slices.Contains(versions, asked.CNIVersion) {
		answer.CNIVersion = asked.CNIVersion
	}
	return json.Marshal(answer)
}

// openNetns opens the container's namespace, so that the agent gets it whatever mount namespace the path is from. With
// DEL it may be gone already.
func openNetns(request *cni.Request) (*os.File, error) {
	if request.NetnsPath == "" {
		return nil, nil
	}
	netns, err := os.Open(request.NetnsPath)
	if err != nil && request.Command == cni.Del {
		return nil, nil
	}
	if err != nil {
		return nil, cni.Errorf(cni.CodeInvalidEnvironment, "invalid environment variable CNI_NETNS",
			"%v: give the path of a network namespace that exists", err)
	}
	return netns, nil
}

// ask has the agent do a command that cannot wait for later.
func ask(ctx context.Context, raw *cni.Raw, request *cni.Request, netns *os.File) ([]byte, error) {
	reply, err := cni.Ask(ctx, request.Config.Socket, raw, netns, patience(request.Command))
	switch {
	case err != nil:
		return nil, cni.Errorf(cni.CodeTryAgainLater, "tendril-agent does not answer; try again later", "%v", err)
	case reply.Error != nil:
		return nil, reply.Error
	}
	return reply.Result, nil
}

func patience(command cni.Command) time.Duration {
	if command == cni.Add || command == cni.GC {
		return addPatience
	}
	return delPatience
}

// remove deletes now, or queues the deletion. An agent that comes up between the two could have drained the queue
// just before the deletion was in it, so it is asked once more.
func remove(ctx context.Context, raw *cni.Raw, request *cni.Request, netns *os.File) error {
	reply, err := cni.Ask(ctx, request.Config.Socket, raw, netns, delPatience)
	if err == nil {
		return replyError(reply)
	}
	queue := cni.NewQueue(request.Config.DataDir)
	if failed := queue.Put(raw); failed != nil {
		return cni.Errorf(cni.CodeTryAgainLater, "tendril-agent does not answer; try again later", "%v; %v", err, failed)
	}
	reply, err = cni.Ask(ctx, request.Config.Socket, raw, netns, 0)
	if err != nil {
		return nil
	}
	return errors.Join(replyError(reply), queue.Remove(raw))
}

// replyError avoids an interface that holds a nil *Error.
func replyError(reply *cni.Reply) error {
	if reply.Error != nil {
		return fmt.Errorf("agent: %w", reply.Error)
	}
	return nil
}
