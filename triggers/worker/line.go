package worker

import (
	"bufio"
	"bytes"
	"context"
	"errors"

	"github.com/sensor-engine/engine/triggers"
)

// MaxLine is the longest answer in a line, in bytes.
const MaxLine = triggers.MaxOutput + maxMeta

// Line is a call as a line of JSON, for a program that makes this one call
// and ends; what it writes is for [Answer].
func Line(ctx context.Context, c *triggers.Call) ([]byte, error) {
	payload, err := c.Payload()
	if err != nil {
		return nil, err
	}
	return ndjson{}.request(nil, 1, &request{ctx, c, payload}), nil
}

// Answer is the result in what a program wrote that was given a [Line]: one
// line. The error is that of the function, or says that this is no answer.
func Answer(written []byte) (triggers.Result, error) {
	line := append(bytes.TrimSpace(written), '\n')
	got, err := ndjson{}.read(bufio.NewReaderSize(bytes.NewReader(line), len(line)+1), 1)
	res := triggers.Result{Status: "failed"}
	if _, bad := errors.AsType[*protocolError](err); bad || len(line) == 1 {
		if len(line) == 1 {
			err = wrong("there is none")
		}
		return res, triggers.Errorf(triggers.FunctionError, "%w", err)
	}
	if err != nil {
		return res, err
	}
	if got.err != nil {
		return res, got.err
	}
	res.Output, res.ContentType, res.Events, res.Status = got.payload, "application/json", got.events, "answered"
	return res, nil
}
