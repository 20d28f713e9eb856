package store

import (
	"context"
	"errors"
	"fmt"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	storev1 "tendril.io/tendril/api/store/v1"
)

// Probe makes a round trip to the store and one to the Publish service, each over a connection of its own that nothing
// used before: a path that only lets old connections live is no path. It returns nil if both have answered.
func (c *Client) Probe(ctx context.Context) error {
	return errors.Join(c.probeStore(ctx), c.probePublish(ctx))
}

func (c *Client) probeStore(ctx context.Context) (err error) {
	endpoints, _ := c.addresses.get()
	client, err := DialEtcd(endpoints, c.config.TLS, c.config.Logger)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, client.Close()) }()
	if _, err := client.Get(ctx, Prefix(c.config.Cluster)+"epoch"); err != nil {
		return fmt.Errorf("read from the store: %w", err)
	}
	return nil
}

// probePublish sends nothing to write, which the service refuses: the refusal is the answer.
func (c *Client) probePublish(ctx context.Context) (err error) {
	_, publish := c.addresses.get()
	conn, err := dialPublish(publish, c.config.identity())
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, conn.Close()) }()
	_, err = storev1.NewPublishClient(conn).Put(ctx, &storev1.PutRequest{Node: c.config.Node})
	if status.Code(err) == codes.InvalidArgument || err == nil {
		return nil
	}
	return fmt.Errorf("reach the publish service: %w", err)
}
