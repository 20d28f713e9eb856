package main

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"os"
	"sync"
	"sync/atomic"
	"time"
)

const (
	kept     = 4 // clients that keep their connection
	dialling = 4 // clients that make one for each request
	pace     = 10 * time.Millisecond
)

// load asks a server again and again until its standard input ends, and then says how many answers came and how many did not.
func load(url string) error {
	ctx, stop := context.WithCancel(context.Background())
	go func() {
		defer stop()
		_, _ = io.Copy(io.Discard, os.Stdin) // that it ends is all that counts
	}()
	var answered, lost atomic.Int64
	var group sync.WaitGroup
	for i := range kept + dialling {
		group.Go(func() {
			client := http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{DisableKeepAlives: i >= kept}}
			for ctx.Err() == nil {
				if err := ask(&client, url); err != nil {
					fmt.Println(time.Now().Format(time.StampMilli), err)
					lost.Add(1)
				} else {
					answered.Add(1)
				}
				time.Sleep(pace)
			}
		})
	}
	group.Wait()
	fmt.Printf("answered %d lost %d\n", answered.Load(), lost.Load())
	return nil
}

func ask(client *http.Client, url string) error {
	response, err := client.Get(url)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	_, err = io.Copy(io.Discard, response.Body)
	return err
}
