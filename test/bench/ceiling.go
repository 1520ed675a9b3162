package main

import (
	"bytes"
	"context"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"sync"
	"sync/atomic"
	"time"
)

// serveCeiling is what the engine is compared with: HTTP in, a channel, HTTP
// out, with the standard server and client. No program that takes and calls
// over net/http is faster; what the engine adds is the difference.
func serveCeiling(ctx context.Context, args []string) error {
	fs := flag.NewFlagSet("bench ceiling", flag.ContinueOnError)
	listen := fs.String("listen", "127.0.0.1:12000", "address for events")
	sink := fs.String("sink", "", "URL to post them to")
	workers := fs.Int("concurrency", 64, "calls at the same time")
	size := fs.Int("queue", 4096, "events that may wait")
	drop := fs.String("drop", "", "`path` whose events are answered and not passed on")
	if err := fs.Parse(args); err != nil {
		return err
	}
	ln, err := net.Listen("tcp", *listen)
	if err != nil {
		return err
	}
	client := &http.Client{
		Transport: &http.Transport{MaxIdleConnsPerHost: *workers},
		Timeout:   30 * time.Second,
	}
	queue := make(chan []byte, *size)
	var wg sync.WaitGroup
	for range *workers {
		wg.Go(func() {
			for body := range queue {
				if err := post(ctx, client, *sink, body); err != nil && ctx.Err() == nil {
					fmt.Println("call failed:", err)
				}
			}
		})
	}
	var last atomic.Int64
	srv := &http.Server{ReadHeaderTimeout: 10 * time.Second, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodGet { // the readiness probe
			return
		}
		body, err := io.ReadAll(r.Body)
		if err != nil {
			w.WriteHeader(http.StatusBadRequest)
			return
		}
		if r.URL.Path != *drop {
			queue <- body
		}
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(http.StatusAccepted)
		_, _ = io.WriteString(w, `{"id":"`+strconv.FormatInt(last.Add(1), 10)+`"}`)
	})}
	stop := context.AfterFunc(ctx, func() { _ = srv.Close() })
	defer stop()
	err = srv.Serve(ln)
	if ctx.Err() != nil {
		return nil // told to stop; what is still queued does not matter any more
	}
	close(queue)
	wg.Wait()
	return err
}

func post(ctx context.Context, client *http.Client, url string, body []byte) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, url, bytes.NewReader(body))
	if err != nil {
		return err
	}
	req.Header.Set("Content-Type", "application/json")
	resp, err := client.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	_, err = io.Copy(io.Discard, resp.Body)
	return err
}
