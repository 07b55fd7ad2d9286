package broker

import (
	"context"
	"strings"
	"testing"
	"time"

	"credentialbroker/api/client"
	"credentialbroker/internal/fake"
	"credentialbroker/providers"
)

// dying is a store whose login somebody has to replace.
type dying struct {
	*fake.Store
	end time.Time
	err error
}

func (d *dying) LoginEnd(context.Context) (string, time.Time, error) {
	return "the secret-id", d.end, d.err
}

func TestLiveWarnsOfTheLogin(t *testing.T) {
	inWorld(t, func(w *world) {
		_, edit := anOAuth2(w.t)
		d := &dying{Store: w.store}
		w.with(func(c *Client) { edit(c); c.Provider = d })
		now := w.clock.Now().Wall
		for _, c := range []struct {
			end  time.Time
			err  error
			want string
		}{
			{time.Time{}, nil, ""},
			{now.Add(31 * 24 * time.Hour), nil, "login ok the secret-id is valid until "},
			{now.Add(29 * 24 * time.Hour), nil, "login warning the secret-id ends on "},
			{now.Add(-time.Hour), nil, "login warning "},
			{time.Time{}, &providers.Error{Kind: providers.Denied, Message: "no look"}, "login ok when the login ends is not known"},
			{time.Time{}, &providers.Error{Kind: providers.Unavailable, Message: "down"}, "login error "},
		} {
			d.end, d.err = c.end, c.err
			found := ""
			w.b.Live(w.t.Context(), func(f client.Finding) {
				if f.Check == "login" {
					found += f.Check + " " + string(f.Level) + " " + f.Detail
				}
			})
			if !strings.HasPrefix(found, c.want) || (found == "") != (c.want == "") {
				w.t.Errorf("%q, want %q", found, c.want)
			}
		}
	})
}
