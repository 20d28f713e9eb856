package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/apimachinery/pkg/util/httpstream"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/remotecommand"
	"k8s.io/client-go/util/exec"
)

// container is one container of a pod.
type container struct{ namespace, pod, name string }

// execFunc runs a command in a container, as `kubectl exec` does, and returns what it printed. A command that ran and ended with another
// status than 0 is a *statusError.
type execFunc func(ctx context.Context, in container, command ...string) ([]byte, error)

// statusError says that a command in a container ran and did not succeed.
type statusError struct {
	status int
	stderr string
}

func (e *statusError) Error() string {
	if e.stderr == "" {
		return fmt.Sprintf("exit status %d", e.status)
	}
	return e.stderr
}

// logsFunc returns the last lines that a container has logged, or the one before it in its place.
type logsFunc func(ctx context.Context, of container, lines int64, previous bool) ([]byte, error)

// coreClient speaks to the API server's first group, in which pods are.
func coreClient(config *rest.Config) (*rest.Config, *rest.RESTClient, error) {
	config = rest.CopyConfig(config)
	config.APIPath, config.GroupVersion = "/api", &schema.GroupVersion{Version: "v1"}
	config.NegotiatedSerializer = serializer.NewCodecFactory(runtime.NewScheme()).WithoutConversion()
	client, err := rest.RESTClientFor(config)
	if err != nil {
		return nil, nil, fmt.Errorf("client of the API server: %w", err)
	}
	return config, client, nil
}

// logsBy reads logs by the API server that a client speaks to.
func logsBy(client *rest.RESTClient) logsFunc {
	return func(ctx context.Context, of container, lines int64, previous bool) ([]byte, error) {
		text, err := client.Get().Namespace(of.namespace).Resource("pods").Name(of.pod).SubResource("log").
			Param("container", of.name).Param("tailLines", strconv.FormatInt(lines, 10)).Param("previous", strconv.FormatBool(previous)).DoRaw(ctx)
		if err != nil {
			return nil, fmt.Errorf("log of container %s of pod %s/%s: %w", of.name, of.namespace, of.pod, err)
		}
		return text, nil
	}
}

// execBy runs commands by the API server that a client speaks to, over a WebSocket (Kubernetes 1.30). config: the client's
func execBy(config *rest.Config, client *rest.RESTClient) execFunc {
	return func(ctx context.Context, in container, command ...string) ([]byte, error) {
		request := client.Get().Namespace(in.namespace).Resource("pods").Name(in.pod).SubResource("exec").
			Param("container", in.name).Param("stdout", "true").Param("stderr", "true")
		for _, word := range command {
			request.Param("command", word)
		}
		executor, err := remotecommand.NewWebSocketExecutor(config, "GET", request.URL().String())
		if err != nil {
			return nil, fmt.Errorf("client of the API server: %w", err)
		}
		var stdout, stderr bytes.Buffer
		err = executor.StreamWithContext(ctx, remotecommand.StreamOptions{Stdout: &stdout, Stderr: &stderr})
		return stdout.Bytes(), explainExec(in, err, stderr.String())
	}
}

// explainExec tells a command that did not succeed from one that did not run.
func explainExec(in container, err error, stderr string) error {
	if err == nil {
		return nil
	}
	if ended, ok := errors.AsType[exec.CodeExitError](err); ok {
		return &statusError{ended.Code, strings.TrimSpace(stderr)}
	}
	if refused, ok := errors.AsType[*httpstream.UpgradeFailureError](err); ok {
		err = refused.Cause
	}
	if apierrors.IsForbidden(err) {
		return fmt.Errorf("exec in pod %s/%s: %w: this needs the right to get and create pods/exec there", in.namespace, in.pod, err)
	}
	return fmt.Errorf("exec in pod %s/%s: %w", in.namespace, in.pod, err)
}
