// Command ticker is an event driver: it posts one CloudEvent every --seconds
// to the address the engine gives it.
package main

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"log"
	"net/http"
	"os"
	"os/signal"
	"strconv"
	"syscall"
	"time"
)

func main() {
	log.SetFlags(0) // stderr is the log, which has times already
	seconds := flag.Float64("seconds", 60, "time between two ticks")
	source := flag.String("source", rand.Text(), "source of the events")
	flag.Parse()
	url, token := os.Getenv("ENGINE_EVENTS_URL"), os.Getenv("AUTH_TOKEN")
	if url == "" {
		log.Fatal("ENGINE_EVENTS_URL is not set: this program is run by the engine")
	}
	if *seconds <= 0 {
		log.Fatal("--seconds must be more than 0")
	}

	// The engine asks us to end with SIGTERM, and our stdin ends with it.
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, os.Interrupt)
	defer stop()
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin)
		stop()
	}()

	log.Printf("ticking every %g s", *seconds)
	ticks := time.NewTicker(time.Duration(*seconds * float64(time.Second)))
	defer ticks.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case now := <-ticks.C:
			tick := map[string]string{
				"specversion": "1.0", "type": "ticker.tick", "source": *source,
				"id": rand.Text(), "time": now.Format(time.RFC3339Nano),
			}
			if err := post(ctx, url, token, tick); err != nil && ctx.Err() == nil {
				log.Fatal(err) // the engine starts us again
			}
		}
	}
}

// post sends an event until it is stored. Sent twice with the same id, it is
// one event all the same.
func post(ctx context.Context, url, token string, event map[string]string) error {
	body, err := json.Marshal(event)
	if err != nil {
		return err
	}
	for {
		req, err := http.NewRequestWithContext(ctx, http.MethodPost, url, bytes.NewReader(body)) //nolint:gosec // the address is the engine's
		if err != nil {
			return err
		}
		req.Header.Set("Content-Type", "application/cloudevents+json")
		req.Header.Set("Authorization", "Bearer "+token)
		res, err := http.DefaultClient.Do(req) //nolint:gosec // as above
		if err != nil {
			return err
		}
		text, _ := io.ReadAll(res.Body)
		_ = res.Body.Close()
		switch res.StatusCode {
		case http.StatusCreated:
			return nil
		case http.StatusServiceUnavailable, http.StatusTooManyRequests: // later
		default:
			return fmt.Errorf("%s: %s", res.Status, text)
		}
		wait, err := strconv.Atoi(res.Header.Get("Retry-After"))
		if err != nil {
			wait = 1
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(time.Duration(wait) * time.Second):
		}
	}
}
