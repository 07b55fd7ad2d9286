package gcp

import (
	"context"
	"fmt"
	"strconv"
	"strings"

	secretmanager "cloud.google.com/go/secretmanager/apiv1"
	"cloud.google.com/go/secretmanager/apiv1/secretmanagerpb"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"credentialbroker/internal/secret"
	"credentialbroker/providers"
)

// maxStored is what the service takes, in bytes.
const maxStored = 64 << 10

// Put adds a version. The service has no compare-and-set: the latest version is
// looked at before, and afterwards the new number, which is given in order,
// tells whether another writer came between. In that case the version that was
// added stays, and is named in the Conflict.
func (m *manager) Put(ctx context.Context, ref providers.Ref, fields map[string]secret.Secret, expect providers.Version) (providers.Version, error) {
	var v providers.Version
	err := m.call(ctx, ref, func(ctx context.Context, c *secretmanager.Client) (err error) {
		v, err = m.put(ctx, c, ref, fields, expect)
		return err
	})
	return v, err
}

func (m *manager) put(ctx context.Context, c *secretmanager.Client, ref providers.Ref, fields map[string]secret.Secret, expect providers.Version) (providers.Version, error) {
	before := uint64(0)
	if expect != "" {
		var err error
		if before, err = strconv.ParseUint(string(expect), 10, 63); err != nil || ref.Version != "" {
			return "", &providers.Error{Kind: providers.Unsupported, Message: "only the latest version can be replaced", Hint: "expect its number, and name no version"}
		}
	}
	data, err := providers.Encode(fields)
	if err != nil {
		return "", err
	}
	defer clear(data)
	if len(data) > maxStored {
		return "", &providers.Error{Kind: providers.Unsupported, Message: fmt.Sprintf("the secret is larger than %d bytes", maxStored)}
	}
	name := m.secretName(ref)
	current, err := latestNumber(ctx, c, name)
	switch {
	case err != nil:
		return "", err
	case current != before:
		return "", &providers.Error{Kind: providers.Conflict, Message: fmt.Sprintf("the latest version is %d, not %d", current, before),
			Hint: "nothing was written: read it again first"}
	}
	if before == 0 {
		if err := create(ctx, c, name); err != nil {
			return "", err
		}
	}
	sum := checksum(data)
	added, err := c.AddSecretVersion(ctx, &secretmanagerpb.AddSecretVersionRequest{Parent: name,
		Payload: &secretmanagerpb.SecretPayload{Data: data, DataCrc32C: &sum}})
	if status.Code(err) == codes.PermissionDenied {
		return "", &providers.Error{Kind: providers.Denied, Message: "the login may not write", Hint: "grant it roles/secretmanager.secretVersionAdder on the secret", Err: err}
	}
	if err != nil {
		return "", err
	}
	number, err := numberOf(added.GetName())
	switch {
	case err != nil:
		return "", err
	case number != before+1:
		return "", &providers.Error{Kind: providers.Conflict, Message: fmt.Sprintf("version %d was added, and another writer's came between it and %d", number, before),
			Hint: "compare the versions and disable the wrong one"}
	}
	return providers.Version(strconv.FormatUint(number, 10)), nil
}

// latestNumber is 0 for a secret that is absent or has no version. It accesses
// the value, as that is the permission that every login has.
func latestNumber(ctx context.Context, c *secretmanager.Client, name string) (uint64, error) {
	resp, err := c.AccessSecretVersion(ctx, &secretmanagerpb.AccessSecretVersionRequest{Name: name + "/versions/" + latest})
	clear(resp.GetPayload().GetData())
	if status.Code(err) == codes.NotFound {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	return numberOf(resp.GetName())
}

func numberOf(version string) (uint64, error) {
	_, text, _ := strings.Cut(version, "/versions/")
	n, err := strconv.ParseUint(text, 10, 63)
	if err != nil || n == 0 {
		return 0, &providers.Error{Kind: providers.Malformed, Message: "the answer does not say which version it is"}
	}
	return n, nil
}

// create makes the secret; one without versions may be there already.
func create(ctx context.Context, c *secretmanager.Client, name string) error {
	parent, id, _ := strings.Cut(name, "/secrets/")
	secret := &secretmanagerpb.Secret{}
	if !strings.Contains(parent, "/locations/") { // a regional secret stays where it is
		secret.Replication = &secretmanagerpb.Replication{Replication: &secretmanagerpb.Replication_Automatic_{
			Automatic: &secretmanagerpb.Replication_Automatic{}}}
	}
	_, err := c.CreateSecret(ctx, &secretmanagerpb.CreateSecretRequest{Parent: parent, SecretId: id, Secret: secret})
	switch status.Code(err) {
	case codes.OK, codes.AlreadyExists:
		return nil
	case codes.PermissionDenied:
		return &providers.Error{Kind: providers.Denied, Message: "the secret is not there and the login may not make it",
			Hint: "make it without a version, or grant secretmanager.secrets.create", Err: err}
	default:
		return err
	}
}
