package vault

import (
	"bytes"
	"cmp"
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"credentialbroker/internal/secret"
	"credentialbroker/providers"
)

// place is ref as Vault's paths have it.
func place(ref providers.Ref) providers.Ref {
	ref.Mount = strings.Trim(cmp.Or(ref.Mount, "secret"), "/")
	ref.Path = strings.Trim(ref.Path, "/")
	return ref
}

func checkRef(ref providers.Ref) error {
	if !cleanPath(ref.Mount) || !cleanPath(ref.Path) {
		return fail(providers.NotFound, "mount and path name no secret of Vault", "want mount: secret and path: team/name, without . and ..")
	}
	return nil
}

// CheckRef says whether ref can name a secret of a KV engine.
func (Config) CheckRef(ref providers.Ref) error { return checkRef(place(ref)) }

func dataPath(ref providers.Ref) string     { return ref.Mount + "/data/" + ref.Path }
func metadataPath(ref providers.Ref) string { return ref.Mount + "/metadata/" + ref.Path }

func (p *provider) fetch(ctx context.Context, ref providers.Ref, have providers.Version) (providers.Bundle, error) {
	if err := checkRef(ref); err != nil {
		return providers.Bundle{}, err
	}
	if p.conf.KV == 1 {
		return p.read1(ctx, ref)
	}
	if ref.Version != "" {
		if n, err := strconv.ParseUint(string(ref.Version), 10, 31); err != nil || n == 0 {
			return providers.Bundle{}, fail(providers.NotFound, "there is no such version", "versions of Vault are numbers from 1")
		}
	}
	if have != "" && (ref.Version == "" || ref.Version == have) {
		if same, err := p.unchanged(ctx, ref, have); err != nil || same {
			return providers.Bundle{Version: have}, err
		}
	}
	return p.read2(ctx, ref)
}

// unchanged asks the metadata whether have is the version to have, and neither
// deleted nor about to be. If it cannot tell, reading the value will.
func (p *provider) unchanged(ctx context.Context, ref providers.Ref, have providers.Version) (bool, error) {
	path := metadataPath(ref)
	p.mu.Lock()
	denied, was := p.noMetadata[path]
	p.mu.Unlock()
	if was && p.clk.Now().Sub(denied) < time.Hour {
		return false, nil
	}
	a, err := p.do(ctx, path, nil, nil)
	switch {
	case err != nil:
		return false, err
	case a.status == http.StatusNotFound && !a.foreign:
		return false, nil
	case a.status == http.StatusForbidden && !a.foreign:
		// Each denial is a line in Vault's audit log, which somebody watches.
		p.mu.Lock()
		p.noMetadata[path] = p.clk.Now()
		p.mu.Unlock()
		return false, nil
	case !a.ok():
		return false, refusal(a)
	}
	m, err := parseMetadata(a.body)
	if err != nil {
		return false, err
	}
	v, kept := m.Versions[string(have)]
	current := ref.Version != "" || strconv.Itoa(m.Current) == string(have)
	return current && kept && !v.Destroyed && v.Deletion == "", nil
}

// read2 reads a value of KV version 2.
func (p *provider) read2(ctx context.Context, ref providers.Ref) (providers.Bundle, error) {
	var query url.Values
	if ref.Version != "" {
		query = url.Values{"version": {string(ref.Version)}}
	}
	a, err := p.do(ctx, dataPath(ref), query, nil)
	defer clear(a.body)
	switch {
	case err != nil:
		return providers.Bundle{}, err
	case a.status == http.StatusNotFound && !a.foreign:
		return providers.Bundle{}, absent(a.body, ref)
	case a.status == http.StatusForbidden && !a.foreign:
		return providers.Bundle{}, p.denied("read", dataPath(ref), metadataPath(ref))
	case !a.ok():
		return providers.Bundle{}, refusal(a)
	}
	v, err := parseValue(a.body)
	if err != nil {
		return providers.Bundle{}, err
	}
	defer clear(v.Data)
	if v.Metadata.Version < 1 {
		return providers.Bundle{}, fail(providers.Malformed, "the answer has no version", "an engine of version 1 needs kv: 1")
	}
	b := providers.Bundle{Version: providers.Version(strconv.Itoa(v.Metadata.Version)), Created: v.Metadata.Created}
	if t, err := time.Parse(time.RFC3339, v.Metadata.Deletion); err == nil {
		b.Expires = t // delete_version_after, still to come
	}
	b.Fields, err = providers.Parse(v.Data)
	return b, err
}

// read1 reads a value of KV version 1, and makes its version.
func (p *provider) read1(ctx context.Context, ref providers.Ref) (providers.Bundle, error) {
	if ref.Version != "" {
		return providers.Bundle{}, fail(providers.Unsupported, "an engine of KV version 1 keeps no versions", "leave version out")
	}
	path := ref.Mount + "/" + ref.Path
	a, err := p.do(ctx, path, nil, nil)
	defer clear(a.body)
	switch {
	case err != nil:
		return providers.Bundle{}, err
	case a.status == http.StatusNotFound && !a.foreign:
		return providers.Bundle{}, fail(providers.NotFound, "there is no such secret", "is the engine of version 2? Then leave kv: 1 out")
	case a.status == http.StatusForbidden && !a.foreign:
		return providers.Bundle{}, p.denied("read", path)
	case !a.ok():
		return providers.Bundle{}, refusal(a)
	}
	var v struct{ Data json.RawMessage }
	if err := decode(a.body, &v); err != nil {
		return providers.Bundle{}, err
	}
	defer clear(v.Data)
	if !isObject(v.Data) {
		return providers.Bundle{}, malformed()
	}
	var b providers.Bundle
	err = p.key.Use(func(key []byte) error {
		h := hmac.New(sha256.New, key)
		h.Write(v.Data)
		b.Version = providers.Version("v1-" + hex.EncodeToString(h.Sum(nil)[:8]))
		return nil
	})
	if err != nil {
		return providers.Bundle{}, closed()
	}
	b.Fields, err = providers.Parse(v.Data)
	return b, err
}

func (p *provider) put(ctx context.Context, ref providers.Ref, fields map[string]secret.Secret, expect providers.Version) (providers.Version, error) {
	if err := checkRef(ref); err != nil {
		return "", err
	}
	if ref.Version != "" {
		return "", fail(providers.Unsupported, "a pinned version cannot be replaced", "leave version out")
	}
	if p.conf.KV == 1 {
		return p.put1(ctx, ref, fields, expect)
	}
	cas := uint64(0)
	if expect != "" {
		var err error
		if cas, err = strconv.ParseUint(string(expect), 10, 31); err != nil || cas == 0 {
			return "", conflict()
		}
	}
	data, err := encode(fields)
	defer clear(data)
	if err != nil {
		return "", err
	}
	body := fmt.Appendf(make([]byte, 0, len(data)+64), `{"options":{"cas":%d},"data":`, cas)
	body = append(append(body, data...), '}') // fmt would keep a copy
	defer clear(body)
	a, err := p.do(ctx, dataPath(ref), nil, body)
	if err != nil {
		return "", err
	}
	defer clear(a.body)
	if err := p.written(a, dataPath(ref)); err != nil {
		return "", err
	}
	var v struct{ Data struct{ Version int } }
	if err := decode(a.body, &v); err != nil {
		return "", err
	}
	if v.Data.Version < 1 {
		return "", malformed()
	}
	return providers.Version(strconv.Itoa(v.Data.Version)), nil
}

func (p *provider) put1(ctx context.Context, ref providers.Ref, fields map[string]secret.Secret, expect providers.Version) (providers.Version, error) {
	now, err := p.read1(ctx, ref)
	now.Wipe()
	if err != nil && providers.KindOf(err) != providers.NotFound {
		return "", err
	}
	if now.Version != expect {
		return "", conflict()
	}
	body, err := encode(fields)
	defer clear(body)
	if err != nil {
		return "", err
	}
	path := ref.Mount + "/" + ref.Path
	a, err := p.do(ctx, path, nil, body)
	if err != nil {
		return "", err
	}
	clear(a.body)
	if err := p.written(a, path); err != nil {
		return "", err
	}
	back, err := p.read1(ctx, ref)
	defer back.Wipe()
	if err != nil {
		return "", err
	}
	for name, value := range fields {
		if got, ok := back.Fields[name]; !ok || !got.Equal(value) || len(back.Fields) != len(fields) {
			return "", conflict()
		}
	}
	return back.Version, nil
}

// encode makes the JSON object that Vault keeps. The caller wipes it.
func encode(fields map[string]secret.Secret) ([]byte, error) {
	if _, ok := fields[providers.Whole]; ok {
		return nil, fail(providers.Unsupported, "a secret of Vault has named fields, this one is a single value", "")
	}
	return providers.Encode(fields)
}

// written says what became of a write.
func (p *provider) written(a answer, path string) error {
	switch {
	case a.ok():
		return nil
	case a.status == http.StatusBadRequest && a.says("check-and-set"):
		return conflict()
	case a.status == http.StatusForbidden && !a.foreign:
		return p.denied("create, update", path)
	case a.status == http.StatusNotFound && !a.foreign:
		return fail(providers.NotFound, "there is no KV engine at this mount", "")
	}
	return refusal(a)
}

// denied names the lines that the policy lacks.
func (p *provider) denied(capabilities string, paths ...string) error {
	who := "the policy of the role"
	if p.conf.Auth.TokenFile != "" || p.conf.Auth.Agent {
		who = "the policy of the token"
	}
	return fail(providers.Denied, "Vault's policy does not allow it",
		who+" needs "+capabilities+" on "+strings.Join(paths, " and ")+", which are paths of their own in a policy")
}

// absent tells a version that was deleted from a secret that never was.
func absent(body []byte, ref providers.Ref) error {
	hint := "name the engine as mount: and the secret as path:, without data/; an engine of version 1 needs kv: 1"
	var v value
	if json.Unmarshal(body, &struct{ Data *value }{&v}) != nil || v.Metadata.Version < 1 {
		message := "there is no such secret"
		if ref.Version != "" {
			message, hint = "there is no such version", ""
		}
		return fail(providers.NotFound, message, hint)
	}
	n := v.Metadata.Version
	if v.Metadata.Destroyed {
		return fail(providers.Deleted, fmt.Sprintf("version %d is destroyed", n), "write a new version")
	}
	message := fmt.Sprintf("version %d is deleted", n)
	if t, err := time.Parse(time.RFC3339, v.Metadata.Deletion); err == nil {
		message += " since " + t.UTC().Format(time.RFC3339)
	}
	return fail(providers.Deleted, message, fmt.Sprintf("vault kv undelete -versions=%d brings it back", n))
}

func conflict() error {
	return fail(providers.Conflict, "another writer came first", "read it again")
}

func malformed() error {
	return fail(providers.Malformed, "the answer is not what Vault sends", "does address name Vault, and kv: the version of the engine?")
}

func closed() error { return fail(providers.Unavailable, "the provider is closed", "") }

type value struct {
	Data     json.RawMessage
	Metadata struct {
		Version   int       `json:"version"`
		Created   time.Time `json:"created_time"`
		Deletion  string    `json:"deletion_time"`
		Destroyed bool      `json:"destroyed"`
	}
}

// parseValue takes the answer of MOUNT/data/PATH apart. The caller wipes Data.
func parseValue(body []byte) (value, error) {
	var v struct{ Data value }
	if err := decode(body, &v); err != nil {
		return value{}, err
	}
	if !isObject(v.Data.Data) {
		clear(v.Data.Data)
		return value{}, malformed()
	}
	return v.Data, nil
}

type metadata struct {
	Current  int `json:"current_version"`
	Versions map[string]struct {
		Deletion  string `json:"deletion_time"`
		Destroyed bool   `json:"destroyed"`
	} `json:"versions"`
}

func parseMetadata(body []byte) (metadata, error) {
	var m struct{ Data metadata }
	if err := decode(body, &m); err != nil {
		return metadata{}, err
	}
	if m.Data.Current < 0 || m.Data.Versions == nil {
		return metadata{}, malformed()
	}
	return m.Data, nil
}

// decode reads JSON. The library's error may quote, and is dropped.
func decode(body []byte, into any) error {
	if json.Unmarshal(body, into) != nil {
		return malformed()
	}
	return nil
}

func isObject(raw json.RawMessage) bool { return bytes.HasPrefix(raw, []byte("{")) }
