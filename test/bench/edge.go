package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"regexp"
	"strconv"
)

// edgeLine is a line of the package's benchmark: who carried which packet, and how long it took.
var edgeLine = regexp.MustCompile(`(?m)^BenchmarkEdge/(xdp|tcx)(_floor)?_(\w+?)(?:-\d+)?\s+\d+\s+([0-9.]+) ns/packet$`)

// edge measures what a packet between a client outside and a backend of another node costs the node between them, by XDP and by TCX, above
// a program that does nothing. The benchmark is that of the package bpf, where the tests have a node's maps and routes.
func (b *bench) edge(ctx context.Context) error {
	for range b.rounds {
		test := exec.CommandContext(ctx, "go", "test", "-run", "^$", "-bench", "^BenchmarkEdge$", "-benchtime", "3x", "./bpf")
		test.Env = append(os.Environ(), "CGO_ENABLED=0")
		text, err := test.CombinedOutput()
		if err != nil {
			return fmt.Errorf("%w\n%s", err, text)
		}
		taken := map[string]float64{}
		for _, line := range edgeLine.FindAllStringSubmatch(string(text), -1) {
			if taken[line[1]+line[2]+line[3]], err = strconv.ParseFloat(line[4], 64); err != nil {
				return err
			}
		}
		for name, packet := range map[string]string{"": "v4", "_v6": "v6", "_answer": "answer_v4"} {
			for _, hook := range []string{"xdp", "tcx"} {
				full, known := taken[hook+packet]
				floor, knownFloor := taken[hook+"_floor"+packet]
				if !known || !knownFloor {
					return fmt.Errorf("the benchmark says nothing of %s by %s:\n%s", packet, hook, text)
				}
				b.sample(hook+"_lb_ns"+name, full-floor)
			}
		}
	}
	return nil
}
