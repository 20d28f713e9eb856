package store

import (
	"context"
	"fmt"
	"net/netip"

	"google.golang.org/protobuf/proto"

	storev1 "tendril.io/tendril/api/store/v1"
)

// PodCIDRs asks the store, once, for the prefixes that the operator gave this node's pods; none: it has not yet. An agent
// needs them before it has tables, so they are not a row; and before Run, so a node without a certificate enrols here.
func (c *Client) PodCIDRs(ctx context.Context) ([]netip.Prefix, error) {
	if c.enrolment != nil {
		if err := c.enrolment.ensure(ctx); err != nil {
			return nil, err
		}
	}
	key := NodeLabelsKey(c.config.Node)
	var record storev1.NodeLabels
	err := c.calls.read(ctx, "pod-cidrs", func(ctx context.Context) error {
		response, err := c.etcd.Get(ctx, Prefix(c.config.Cluster)+key.String())
		if err != nil || len(response.Kvs) == 0 {
			return err
		}
		return proto.Unmarshal(response.Kvs[0].Value, &record)
	})
	if err != nil {
		return nil, fmt.Errorf("read key %q: %w", key, err)
	}
	cidrs := make([]netip.Prefix, 0, len(record.GetPodCidrs()))
	for _, text := range record.GetPodCidrs() {
		cidr, err := netip.ParsePrefix(text)
		if err != nil {
			return nil, fmt.Errorf("key %q: pod_cidrs: %w", key, err)
		}
		cidrs = append(cidrs, cidr)
	}
	return cidrs, nil
}
