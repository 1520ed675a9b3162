package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"
	"unicode/utf8"

	"github.com/spf13/cobra"

	"github.com/sensor-engine/engine/bus"
	"github.com/sensor-engine/engine/engine/api"
	"github.com/sensor-engine/engine/sources"
)

func (e *env) emitVerb() *cobra.Command {
	var data, source, subject, id, contentType string
	var extensions []string
	cmd := &cobra.Command{
		Use:   "emit TYPE",
		Short: "Put an event into the log",
		Long: `Stores one event of the given CloudEvents type. Sensors see it as an event of
the source _emit whose name is the type. It returns after the event is stored.`,
		Example: `  engine emit com.example.deploy --data '{"version": "1.2"}'
  engine emit report.ready --data @report.json --id report-7 --ext tenant=acme
  date | engine emit note --data - --content-type text/plain`,
		Args: cobra.ExactArgs(1),
	}
	fs := cmd.Flags()
	fs.StringVarP(&data, "data", "d", "", "the payload; @FILE reads a file, - standard input")
	fs.StringVar(&source, "source", "/engine/emit", "CloudEvents source")
	fs.StringVar(&subject, "subject", "", "CloudEvents subject")
	fs.StringVar(&id, "id", "", "CloudEvents id; the same source and id within ten minutes is the same event; default: a new one")
	fs.StringVar(&contentType, "content-type", "", "media type of the payload; default application/json when it is JSON, else text/plain or application/octet-stream")
	fs.StringArrayVar(&extensions, "ext", nil, "extension attribute NAME=VALUE; may be repeated")
	c := e.client(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		body, err := e.payload("--data", data)
		if err != nil {
			return err
		}
		if id == "" {
			id = sources.NewID()
		}
		h := http.Header{"Ce-Specversion": {"1.0"}}
		for name, v := range map[string]string{"Ce-Id": id, "Ce-Type": args[0], "Ce-Source": source, "Ce-Subject": subject} {
			if v != "" {
				h[name] = []string{headerValue(v)}
			}
		}
		for _, ext := range extensions {
			name, v, ok := strings.Cut(ext, "=")
			if !ok || name == "" || strings.Trim(name, "abcdefghijklmnopqrstuvwxyz0123456789") != "" {
				return usagef("--ext %q is not NAME=VALUE with a name of lower-case letters and digits", ext)
			}
			h[http.CanonicalHeaderKey("ce-"+name)] = []string{headerValue(v)}
		}
		if len(body) > 0 {
			if contentType == "" {
				contentType = mediaType(body)
			}
			h["Content-Type"] = []string{contentType}
		}
		ctx, cancel := context.WithTimeout(cmd.Context(), answerTimeout)
		defer cancel()
		resp, err := c.open(ctx, http.MethodPost, "/events", nil, bytes.NewReader(body), h)
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		var done struct{ Events []api.Emitted }
		if err := json.NewDecoder(resp.Body).Decode(&done); err != nil || len(done.Events) != 1 {
			return errors.Join(errors.New("the engine's answer is not understood"), err)
		}
		p, ev := c.printer(), done.Events[0]
		if !p.text() {
			return p.value(ev)
		}
		what := "stored"
		if ev.Duplicate {
			what = "known already"
		}
		_, err = fmt.Fprintf(e.stdout, "%s: id %s, sequence %d\n", what, clean(ev.ID), ev.Seq)
		return err
	}
	return cmd
}

// payload is the value of a flag, or what is in the file or standard input that
// it names.
func (e *env) payload(flag, data string) ([]byte, error) {
	if data == "-" {
		return io.ReadAll(e.stdin)
	}
	if file, ok := strings.CutPrefix(data, "@"); ok {
		b, err := os.ReadFile(file)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", flag, err)
		}
		return b, nil
	}
	return []byte(data), nil
}

func mediaType(b []byte) string {
	switch {
	case bus.ValidJSON(b):
		return "application/json"
	case utf8.Valid(b):
		return "text/plain; charset=utf-8"
	}
	return "application/octet-stream"
}

// headerValue encodes an attribute as the HTTP binding of CloudEvents asks.
func headerValue(s string) string {
	var b strings.Builder
	for i := range len(s) {
		if c := s[i]; c <= ' ' || c >= 0x7f || c == '"' || c == '%' {
			fmt.Fprintf(&b, "%%%02X", c)
		} else {
			b.WriteByte(c)
		}
	}
	return b.String()
}
