package store

import (
	"context"
	"errors"

	"google.golang.org/protobuf/proto"

	"tendril.io/tendril/internal/table"
)

type Client struct{}

func Dial(config Config) (*Client, error)                             { return nil, errors.New("soon") }
func (c *Client) Run(ctx context.Context, tables *table.Tables) error { return errors.New("soon") }
func (c *Client) Loaded() <-chan struct{}                             { return nil }
func (c *Client) Synced() <-chan struct{}                             { return nil }
func (c *Client) Republish() <-chan string                            { return nil }
func (c *Client) Publisher() *Publisher                               { return nil }
func (c *Client) Status() Status                                      { return Status{} }
func (c *Client) Close() error                                        { return nil }

type Publisher struct{}

func (p *Publisher) Set(key Key, record proto.Message) error { return errors.New("soon") }
func (p *Publisher) Delete(key Key) error                    { return errors.New("soon") }

type Writer struct{}

type Record struct {
	Key   string
	Value proto.Message // nil: remove
}

type Result struct {
	Written, Deleted, Unchanged int
	Revision                    int64
	PolicyRevision              uint64
}

func NewWriter(config WriterConfig) (*Writer, error) { return nil, errors.New("soon") }
func (w *Writer) Apply(ctx context.Context, records []Record) (Result, error) {
	return Result{}, errors.New("soon")
}
func (w *Writer) Fill(ctx context.Context, records []Record) (Result, error) {
	return Result{}, errors.New("soon")
}
func (w *Writer) List(ctx context.Context, kind Kind) ([]Record, error) {
	return nil, errors.New("soon")
}
func (w *Writer) DeleteNode(ctx context.Context, node string) error { return errors.New("soon") }
func (w *Writer) Close() error                                      { return nil }

type Server struct{}

func Serve(ctx context.Context, config ServerConfig) (*Server, error) { return nil, errors.New("soon") }
func (s *Server) Wait() error                                         { return nil }
func (s *Server) ClientAddr() string                                  { return "" }
func (s *Server) PublishAddr() string                                 { return "" }
