package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"net/http"
	"net/url"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"
)

// client asks a running engine.
type client struct {
	e *env
	// The flags. output is text, json or yaml.
	api, token, data, output string
	// where is how one says which data directory is meant.
	where string

	base string
	http *http.Client
}

// client adds the flags of a verb that asks an engine and prints data.
func (e *env) client(cmd *cobra.Command) *client {
	c := &client{e: e}
	own := cmd.Flags()
	c.where = "--data"
	if own.Lookup("data") != nil {
		c.where = "ENGINE_DATA"
	}
	own.StringVar(&c.api, "api", "", "address or URL of the engine's API; default: what the engine on "+c.where+" wrote there")
	own.StringVar(&c.token, "api-token", "", "token of the API, when it asks for one")
	names := []string{"api", "api-token"}
	if c.where == "--data" {
		own.StringVar(&c.data, "data", ".engine", "data directory of the engine, to find its API")
		names = append(names, "data")
	} else if v, ok := e.lookup("ENGINE_DATA"); ok && v != "" {
		c.data = v // this verb has another --data
	} else {
		c.data = ".engine"
	}
	e.output(cmd, &c.output)
	for _, n := range names {
		_ = own.SetAnnotation(n, shared, []string{"true"})
	}
	return c
}

// output adds -o.
func (e *env) output(cmd *cobra.Command, value *string) {
	*value = "text"
	cmd.Flags().VarP(&choiceFlag{value, []string{"text", "json", "yaml"}}, "output", "o", "form of what is printed: text for people, json or yaml for programs")
	_ = cmd.Flags().SetAnnotation("output", shared, []string{"true"})
}

// unreachable is the error of an engine that does not answer.
func unreachable(format string, args ...any) error {
	return &codeError{exitUnreachable, fmt.Errorf(format, args...)}
}

// find finds the API.
func (c *client) find() error {
	if c.base != "" {
		return nil
	}
	c.http = &http.Client{Transport: &http.Transport{Proxy: nil}}
	if c.api == "" {
		b, err := os.ReadFile(announcementPath(c.data))
		if errors.Is(err, fs.ErrNotExist) {
			return unreachable("no engine runs on the data directory %s; start one, or say where it is with %s or --api", c.data, c.where)
		}
		var a announcement
		if err == nil {
			err = json.Unmarshal(b, &a)
		}
		if err != nil {
			return unreachable("%s: %w", announcementPath(c.data), err)
		}
		c.base = a.API
		if c.token == "" {
			c.token = a.Token
		}
		return nil
	}
	c.base = c.api
	if !strings.Contains(c.base, "://") {
		c.base = "http://" + c.base
	}
	if u, err := url.Parse(c.base); err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" {
		return usagef("--api %q is neither an address such as 127.0.0.1:8180 nor a URL", c.api)
	}
	c.base = strings.TrimSuffix(c.base, "/")
	return nil
}

// answerTimeout bounds an ordinary request.
const answerTimeout = 60 * time.Second

// open sends a request and returns the body of a successful answer.
func (c *client) open(ctx context.Context, method, path string, query url.Values, body io.Reader, header http.Header) (*http.Response, error) {
	if err := c.find(); err != nil {
		return nil, err
	}
	u := c.base + "/api/v1" + path
	if len(query) > 0 {
		u += "?" + query.Encode()
	}
	req, err := http.NewRequestWithContext(ctx, method, u, body)
	if err != nil {
		return nil, usagef("%v", err)
	}
	maps.Copy(req.Header, header)
	if c.token != "" {
		req.Header.Set("Authorization", "Bearer "+c.token)
	}
	resp, err := c.http.Do(req)
	if err != nil {
		if ue, ok := errors.AsType[*url.Error](err); ok {
			err = ue.Err
		}
		if ctx.Err() != nil {
			return nil, err
		}
		return nil, unreachable("no engine answers at %s: %w", c.base, err)
	}
	if resp.StatusCode < 400 {
		return resp, nil
	}
	defer resp.Body.Close()
	b, _ := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
	var told struct{ Error string }
	if json.Unmarshal(b, &told) != nil || told.Error == "" {
		told.Error = resp.Status
	}
	if resp.StatusCode == http.StatusUnauthorized {
		told.Error += "; give it with ENGINE_API_TOKEN"
	}
	return nil, errors.New(told.Error)
}

// ask sends a request and decodes the answer into v.
func (c *client) ask(ctx context.Context, method, path string, query url.Values, v any) error {
	return c.send(ctx, method, path, query, nil, v)
}

// send is ask with a JSON body, nil for none.
func (c *client) send(ctx context.Context, method, path string, query url.Values, body []byte, v any) error {
	ctx, cancel := context.WithTimeout(ctx, answerTimeout)
	defer cancel()
	resp, err := c.open(ctx, method, path, query, bytes.NewReader(body), nil)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if note := resp.Header.Get("Engine-Incomplete"); note != "" {
		_, _ = fmt.Fprintln(c.e.stderr, "engine: "+note) // a note, not the result
	}
	if err := json.NewDecoder(resp.Body).Decode(v); err != nil {
		return fmt.Errorf("answer of %s: %w", c.base, err)
	}
	return nil
}

// lines calls fn for each JSON text of an answer without end.
func (c *client) lines(ctx context.Context, path string, query url.Values, fn func(json.RawMessage) error) error {
	resp, err := c.open(ctx, http.MethodGet, path, query, nil, nil)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	rd := bufio.NewReader(resp.Body)
	for {
		line, err := rd.ReadBytes('\n')
		if line = bytes.TrimSpace(line); len(line) > 0 {
			if err := fn(line); err != nil {
				return err
			}
		}
		switch {
		case ctx.Err() != nil:
			return nil
		case errors.Is(err, io.EOF):
			return unreachable("the engine ended the stream")
		case err != nil:
			return unreachable("the engine is gone: %w", err)
		}
	}
}

// printer prints records in the form that -o asks for.
type printer struct {
	w      io.Writer
	output string
	n      int
}

func (c *client) printer() *printer { return &printer{w: c.e.stdout, output: c.output} }

// text reports whether people read it.
func (p *printer) text() bool { return p.output == "text" }

// record prints one of many: JSON on a line, or a YAML document.
func (p *printer) record(b json.RawMessage) error {
	p.n++
	if p.output == "yaml" {
		if p.n > 1 {
			if _, err := io.WriteString(p.w, "---\n"); err != nil {
				return err
			}
		}
		return writeYAML(p.w, b)
	}
	_, err := p.w.Write(append(bytes.Clone(b), '\n'))
	return err
}

// value prints one value: indented JSON, or YAML.
func (p *printer) value(v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	if p.output == "yaml" {
		return writeYAML(p.w, b)
	}
	var out bytes.Buffer
	if err := json.Indent(&out, b, "", "  "); err != nil {
		return err
	}
	out.WriteByte('\n')
	_, err = p.w.Write(out.Bytes())
	return err
}
