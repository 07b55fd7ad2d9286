//go:build real

// Goclient is the driver in Go: goclient ACTION ARGUMENT...; says in JSON what
// came of it, and with REPEAT how many microseconds each of so many further
// readings took.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/oauth2"
	"golang.org/x/oauth2/clientcredentials"

	"credentialbroker/api/client"
)

type said struct {
	Token  string  `json:"token,omitempty"`
	Body   string  `json:"body,omitempty"`
	Code   string  `json:"code,omitempty"`
	Detail string  `json:"detail,omitempty"`
	Micros float64 `json:"micros,omitempty"`
}

func main() {
	log.SetFlags(0)
	answer, err := action(os.Args[1:])
	if err != nil {
		log.Fatal(err)
	}
	s, err := answer()
	if err != nil {
		log.Fatal(err)
	}
	repeat, _ := strconv.Atoi(os.Getenv("REPEAT"))
	times := make([]time.Duration, repeat)
	for i := range times {
		start := time.Now()
		if _, err := answer(); err != nil {
			log.Fatal(err)
		}
		times[i] = time.Since(start)
	}
	if slices.Sort(times); repeat > 0 {
		s.Micros = float64(times[repeat/2]) / float64(time.Microsecond)
	}
	_ = json.NewEncoder(os.Stdout).Encode(s)
}

// action is what can be done again and again with what was made once.
func action(args []string) (func() (said, error), error) {
	ctx := context.Background()
	c := &client.Client{}
	switch {
	case len(args) == 2 && args[0] == "token": // CLIENT
		return func() (said, error) {
			tok, err := c.Token(ctx, args[1], client.Options{})
			if err != nil {
				return said{}, err
			}
			return said{Token: tok.AccessToken}, nil
		}, nil
	case len(args) == 2 && args[0] == "events": // CLIENT
		return func() (said, error) {
			for tok, err := range c.Events(ctx, args[1], client.Options{}) {
				if err != nil {
					return said{}, err
				}
				return said{Token: tok.AccessToken}, nil
			}
			return said{}, errors.New("the stream ended before its first event")
		}, nil
	case len(args) == 2 && args[0] == "oauth": // CLIENT
		http := overSocket(client.DefaultSocket())
		return func() (said, error) { return grant(context.WithValue(ctx, oauth2.HTTPClient, http), args[1]) }, nil
	case len(args) == 3 && args[0] == "get": // SOCKET PATH
		http := overSocket(args[1])
		return func() (said, error) { return get(http, args[2]) }, nil
	case len(args) == 4 && args[0] == "credential": // SOCKET UNIT NAME
		return func() (said, error) { return credential(args[1], args[2], args[3]) }, nil
	}
	return nil, fmt.Errorf("no such action: %q", args)
}

func overSocket(socket string) *http.Client {
	return &http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", socket)
	}}}
}

// grant asks the token endpoint as golang.org/x/oauth2 does.
func grant(ctx context.Context, name string) (said, error) {
	cfg := clientcredentials.Config{ClientID: name, TokenURL: "http://localhost/oauth2/token", AuthStyle: oauth2.AuthStyleInParams}
	tok, err := cfg.Token(ctx)
	var refused *oauth2.RetrieveError
	switch {
	case errors.As(err, &refused):
		return said{Code: refused.ErrorCode, Detail: refused.ErrorDescription}, nil
	case err != nil:
		return said{}, err
	}
	return said{Token: tok.AccessToken}, nil
}

func get(c *http.Client, path string) (said, error) {
	resp, err := c.Get("http://localhost" + path)
	if err != nil {
		return said{}, err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode != http.StatusOK {
		err = errors.New(resp.Status)
	}
	return said{Body: string(body)}, err
}

// credential does what systemd does for LoadCredential=: its end of the
// connection has the name of the unit and of the credential (systemd.exec(5)).
func credential(socket, unit, name string) (said, error) {
	own := fmt.Sprintf("@%x/unit/%s/%s", rand.Uint64(), unit, name)
	conn, err := net.DialUnix("unix", &net.UnixAddr{Name: own, Net: "unix"}, &net.UnixAddr{Name: socket, Net: "unix"})
	if err != nil {
		return said{}, err
	}
	defer conn.Close()
	value, err := io.ReadAll(conn)
	if strings.HasPrefix(string(value), "refused: ") { // and longer than systemd takes
		why, _, _ := strings.Cut(string(value), "\n")
		err = errors.New(why)
	}
	return said{Token: string(value)}, err
}
