package client

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"iter"
	"net/http"
)

// maxEvent bounds one line of a stream, in bytes.
const maxEvent = 64 << 10

// Events follows a token: the one of now, and each that replaces it. A refusal
// is a *Problem. One that waiting may mend is followed by tokens again; after
// another one, and when the connection ends, the sequence does. Whoever wants
// to follow a broker over its restarts calls Events again.
func (c *Client) Events(ctx context.Context, name string, o Options) iter.Seq2[*Token, error] {
	return func(yield func(*Token, error) bool) {
		body, err := c.dial().stream(ctx, http.MethodGet, clientPath(name, "events")+o.query())
		if err != nil {
			yield(nil, err)
			return
		}
		defer body.Close()
		buffer := make([]byte, 0, 8<<10)
		defer func() { clear(buffer[:cap(buffer)]) }()
		lines := bufio.NewScanner(body)
		lines.Buffer(buffer, maxEvent)
		kind := ""
		for lines.Scan() {
			field, value, _ := bytes.Cut(lines.Bytes(), []byte(": "))
			switch string(field) {
			case "event":
				kind = string(value)
			case "data":
				if !yield(event(kind, value)) {
					return
				}
			}
		}
		if err := errors.Join(lines.Err(), ctx.Err()); err != nil {
			yield(nil, fmt.Errorf("the broker's stream broke off: %w", err))
		}
	}
}

func event(kind string, data []byte) (*Token, error) {
	if kind == "token" {
		return decode[Token](data)
	}
	var p Problem
	if json.Unmarshal(data, &p) != nil || p.Code == "" {
		return nil, errors.New("the broker sent an event that is not known: are broker and brokerd of one version?")
	}
	return nil, &p
}
