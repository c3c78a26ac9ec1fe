package server

import (
	"context"
	"slices"
	"strings"

	"connectrpc.com/connect/v2"

	errorsv1 "github.com/runnel-mesh/runnel/gen/runnel/errors/v1"
	metadatav1 "github.com/runnel-mesh/runnel/gen/runnel/metadata/v1"
	"github.com/runnel-mesh/runnel/gen/runnel/metadata/v1/metadatav1connect"
	"github.com/runnel-mesh/runnel/sdk/cluster"
	"github.com/runnel-mesh/runnel/services/internal/rpcerr"
	"github.com/runnel-mesh/runnel/services/internal/rules"
	"github.com/runnel-mesh/runnel/services/metadata/internal/controller"
)

// maxPage is how many topics one page lists at most.
const maxPage = 1000

// CreateTopic implements metadatav1connect.TopicServiceHandler.
func (s *Server) CreateTopic(ctx context.Context, req *metadatav1.CreateTopicRequest) (*metadatav1.CreateTopicResponse, error) {
	response, err := decide(ctx, s,
		func(ctx context.Context) (*metadatav1.CreateTopicResponse, error) {
			topic, err := s.o.Controller.CreateTopic(ctx, controller.TopicSpec{
				Name:              req.GetName(),
				Partitions:        req.GetPartitions(),
				ReplicationFactor: req.GetReplicationFactor(),
				Config:            req.GetConfig(),
				ValidateOnly:      req.GetValidateOnly(),
			})
			if err != nil {
				return nil, err
			}
			return &metadatav1.CreateTopicResponse{Topic: topic}, nil
		},
		func(ctx context.Context, client *connect.Client) (*metadatav1.CreateTopicResponse, error) {
			return metadatav1connect.NewTopicServiceClient(client).CreateTopic(ctx, req)
		})
	if err != nil || req.GetValidateOnly() {
		return response, err
	}
	id, err := cluster.ParseTopicID(response.GetTopic().GetTopicId())
	if err != nil {
		return nil, err
	}
	err = s.show(ctx, "the topic was created", func(image *cluster.Image) bool {
		_, there := image.TopicByID(id)
		return there || image.Deleted(id)
	})
	if err != nil {
		return nil, err
	}
	return response, nil
}

// AlterTopic implements metadatav1connect.TopicServiceHandler.
func (s *Server) AlterTopic(ctx context.Context, req *metadatav1.AlterTopicRequest) (*metadatav1.AlterTopicResponse, error) {
	if name := req.GetName(); strings.HasPrefix(name, "__") {
		return nil, rpcerr.New(errorsv1.Reason_REASON_INTERNAL_TOPIC, "topic %q belongs to the cluster and its settings cannot be changed", name)
	}
	response, err := decide(ctx, s,
		func(ctx context.Context) (*metadatav1.AlterTopicResponse, error) {
			topic, version, err := s.o.Controller.AlterTopic(ctx, controller.TopicChange{
				Name:         req.GetName(),
				Config:       req.GetConfig(),
				Unset:        req.GetUnset(),
				ValidateOnly: req.GetValidateOnly(),
			})
			if err != nil {
				return nil, err
			}
			return &metadatav1.AlterTopicResponse{Topic: topic, Version: version}, nil
		},
		func(ctx context.Context, client *connect.Client) (*metadatav1.AlterTopicResponse, error) {
			return metadatav1connect.NewTopicServiceClient(client).AlterTopic(ctx, req)
		})
	if err != nil || req.GetValidateOnly() {
		return response, err
	}
	err = s.show(ctx, "the topic was altered", func(image *cluster.Image) bool { return image.Version >= response.GetVersion() })
	if err != nil {
		return nil, err
	}
	return response, nil
}

// DeleteTopic implements metadatav1connect.TopicServiceHandler.
func (s *Server) DeleteTopic(ctx context.Context, req *metadatav1.DeleteTopicRequest) (*metadatav1.DeleteTopicResponse, error) {
	name := req.GetName()
	if strings.HasPrefix(name, "__") {
		return nil, rpcerr.New(errorsv1.Reason_REASON_INTERNAL_TOPIC, "topic %q belongs to the cluster and cannot be deleted", name)
	}
	// What was known of it before, to wait until it is gone from here too.
	var before *cluster.Topic
	if image := s.o.View.Image(); image != nil {
		before, _ = image.Topic(name)
	}
	response, err := decide(ctx, s,
		func(ctx context.Context) (*metadatav1.DeleteTopicResponse, error) {
			if _, err := s.o.Controller.DeleteTopic(ctx, name); err != nil {
				return nil, err
			}
			return &metadatav1.DeleteTopicResponse{}, nil
		},
		func(ctx context.Context, client *connect.Client) (*metadatav1.DeleteTopicResponse, error) {
			return metadatav1connect.NewTopicServiceClient(client).DeleteTopic(ctx, req)
		})
	if err != nil || before == nil {
		return response, err
	}
	err = s.show(ctx, "the topic was deleted", func(image *cluster.Image) bool {
		_, there := image.TopicByID(before.ID)
		return !there
	})
	if err != nil {
		return nil, err
	}
	return response, nil
}

// ListTopics implements metadatav1connect.TopicServiceHandler.
func (s *Server) ListTopics(_ context.Context, req *metadatav1.ListTopicsRequest) (*metadatav1.ListTopicsResponse, error) {
	size := int(req.GetPageSize())
	switch {
	case size < 0 || size > maxPage:
		return nil, invalid("page_size is %d: use 1 to %d, or 0 for %d", size, maxPage, maxPage)
	case size == 0:
		size = maxPage
	}
	if len(req.GetPageToken()) > rules.MaxTopicNameLength {
		return nil, invalid("page_token is not one that this service gave out: leave it empty to begin anew")
	}
	image, err := s.image()
	if err != nil {
		return nil, err
	}
	topics := image.Topics()
	// A page begins after the last name of the one before, whatever was created or
	// deleted meanwhile.
	from, found := slices.BinarySearchFunc(topics, req.GetPageToken(), func(t *cluster.Topic, name string) int { return strings.Compare(t.Name, name) })
	if found {
		from++
	}
	topics = topics[from:]
	response := &metadatav1.ListTopicsResponse{}
	if len(topics) > size {
		topics = topics[:size]
		response.NextPageToken = topics[size-1].Name
	}
	for _, t := range topics {
		response.Topics = append(response.Topics, &metadatav1.Topic{TopicId: t.ID[:], Name: t.Name, Config: t.Config, PartitionCount: int32(len(t.Partitions))})
	}
	return response, nil
}

// DescribeTopic implements metadatav1connect.TopicServiceHandler.
func (s *Server) DescribeTopic(_ context.Context, req *metadatav1.DescribeTopicRequest) (*metadatav1.DescribeTopicResponse, error) {
	image, err := s.image()
	if err != nil {
		return nil, err
	}
	topic, ok := image.Topic(req.GetName())
	if !ok {
		return nil, controller.TopicNotFound(req.GetName())
	}
	response := &metadatav1.DescribeTopicResponse{Topic: topic.Proto()}
	for _, e := range rules.TopicConfigEntries(topic.Config) {
		response.Config = append(response.Config, &metadatav1.ConfigEntry{Name: e.Name, Value: e.Value, IsDefault: e.Default, Documentation: e.Doc})
	}
	return response, nil
}
