"""``provider=[…]``: several deployments of one model, as a list of the group's options."""

from __future__ import annotations

import pytest

from swe_infer import config
from swe_infer.api.deployments import Deployments
from swe_infer.cli.arguments import hydra_arguments
from swe_infer.cli.composer import composer
from swe_infer.errors import ConfigError
from swe_infer.runners.api import ApiRunner
from swe_infer.types import ApiModel


def test_a_list_of_providers_is_a_chain_in_its_order() -> None:
    arguments = hydra_arguments(
        [
            *("model=gpt-4o", "provider=[openai,azure_openai,openai_compatible]", "dataset=sample", "tracker=none"),
            "provider.second.base_url=https://name.openai.azure.com",
            "provider.third.base_url=http://127.0.0.1:1/v1",
            "provider.names.second=my-deployment",
        ]
    )
    with composer(None) as composing:
        runner = config.build(composing.compose(arguments).cfg).runner
    assert isinstance(runner, ApiRunner)
    assert isinstance(runner.provider, Deployments)
    endpoints = runner.provider.endpoints(ApiModel(name="gpt-4o"))
    assert [(provider.name, model.name) for provider, model in endpoints] == [
        ("openai", "gpt-4o"),
        ("azure_openai", "my-deployment"),
        ("openai_compatible", "gpt-4o"),
    ]


def test_a_list_of_one_is_that_provider() -> None:
    assert hydra_arguments(["provider=[anthropic]"]) == ["provider=anthropic"]


@pytest.mark.parametrize(
    ("given", "chosen"),
    [
        (["model.name=claude-sonnet-6-0"], "model=claude-sonnet-5-5"),
        (["model=api", "model.name=claude-sonnet-6-0", "provider=bedrock"], "model=claude-sonnet-5-5"),
        (["model=claude-sonnet-4-5", "model.name=claude-sonnet-6-0"], "model=claude-sonnet-5-5"),
        (["model.name=claude-sonnet-6-0", "provider=[anthropic,bedrock]"], "model=claude-sonnet-5-5"),
        (["-m", "model.name=gpt-6.2-sol", "decoding.n=1,2"], "model=gpt-6.1-sol"),
        (["model.name=claude-sonnet-4-5-20250929", "provider=anthropic"], "model=api"),
        (["model.name=gpt-7", "provider=azure_openai"], "model=api"),  # a deployment may have any name
        (["model.name=claude-sonnet-6-0", "provider=openai_compatible"], "model=api"),
        (["model=gpt-4o", "model.name=claude-sonnet-6-0"], "model=gpt-4o"),
    ],
)
def test_a_name_that_is_newer_than_its_family_chooses_the_newest_preset(given: list[str], chosen: str) -> None:
    arguments = hydra_arguments(given)
    assert [argument for argument in arguments if argument.startswith("model=")] == [chosen]
    assert next(a for a in given if a.startswith("model.name=")) in [a.lstrip("+") for a in arguments]


@pytest.mark.parametrize(
    "given", ["provider=[]", "provider=[openai,]", "provider=[a,b,c,d,e]", "provider=[a,b],[c,d]"]
)
def test_an_invalid_list_is_refused(given: str) -> None:
    with pytest.raises(ConfigError, match="one to 4 options"):
        hydra_arguments([given])
