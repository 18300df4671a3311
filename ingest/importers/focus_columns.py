"""The columns of a FOCUS export, 1.0 to 1.3, and which version a header is of."""

from __future__ import annotations

from collections.abc import Collection
from typing import Final

from ingest.importers.columns import Field, Kind, normalised


def _column(name: str, kind: Kind, *theirs: str, required: bool = False, filled: bool = False) -> Field:
    return Field(name, kind, dict.fromkeys(map(_header, theirs)), required=required, filled=filled)


def _header(name: str) -> str:
    return normalised(name)[0]


# In 1.3 a provider became the one who makes a service available and a publisher the one who hosts it; the old names stay
# for a while, and win where both are there because earlier files were keyed by them.
FIELDS: Final = (
    _column("provider", "text", "ProviderName", "ServiceProviderName", required=True, filled=True),
    _column("publisher", "text", "PublisherName", "HostProviderName"),
    _column("invoice_issuer", "text", "InvoiceIssuerName", "InvoiceIssuer"),
    _column("invoice_id", "text", "InvoiceId"),
    _column("billing_account", "text", "BillingAccountId", required=True, filled=True),
    _column("sub_account", "text", "SubAccountId"),
    _column("sub_account_name", "text", "SubAccountName"),
    _column("period_start", "instant", "BillingPeriodStart", required=True, filled=True),
    _column("period_end", "instant", "BillingPeriodEnd", required=True, filled=True),
    _column("charge_start", "instant", "ChargePeriodStart", required=True, filled=True),
    _column("charge_end", "instant", "ChargePeriodEnd", required=True, filled=True),
    _column("category", "text", "ChargeCategory", required=True, filled=True),
    _column("charge_class", "text", "ChargeClass"),
    _column("service_category", "text", "ServiceCategory"),
    _column("service", "text", "ServiceName"),
    _column("description", "text", "ChargeDescription"),
    _column("frequency", "text", "ChargeFrequency"),
    _column("pricing_category", "text", "PricingCategory"),
    _column("sku", "text", "SkuId"),
    _column("sku_price", "text", "SkuPriceId"),
    _column("sku_meter", "text", "SkuMeter"),
    _column("sku_details", "object", "SkuPriceDetails", "x_SkuDetails"),
    _column("resource", "text", "ResourceId"),
    _column("resource_name", "text", "ResourceName"),
    _column("region", "text", "RegionId", "Region"),
    _column("commitment", "text", "CommitmentDiscountId"),
    _column("billed_cost", "decimal", "BilledCost", required=True, filled=True),
    _column("effective_cost", "decimal", "EffectiveCost", required=True, filled=True),
    _column("list_cost", "decimal", "ListCost"),
    _column("contracted_cost", "decimal", "ContractedCost"),
    _column("currency", "text", "BillingCurrency", required=True, filled=True),
    _column("pricing_quantity", "decimal", "PricingQuantity"),
    _column("pricing_unit", "text", "PricingUnit"),
    _column("consumed_quantity", "decimal", "ConsumedQuantity", "UsageQuantity"),
    _column("consumed_unit", "text", "ConsumedUnit", "UsageUnit"),
    _column("tags", "object", "Tags"),
    _column("call", "text", "x_ResponseId", "x_response_id", "x_RequestId", "x_request_id", "RequestId"),
    _column("model", "text", "x_ModelId", "x_model_id", "x_Model", "x_ModelName"),
    _column("api_key", "text", "x_ApiKeyName", "x_ApiKeyAlias", "x_KeyAlias"),
)
_SINCE: Final = (
    ("1.3", ("ServiceProviderName", "HostProviderName", "ContractApplied", "AllocatedMethodId", "AllocatedResourceId")),
    ("1.2", ("InvoiceId", "PricingCurrency", "BillingAccountType", "SubAccountType")),
    (
        "1.1",
        ("SkuMeter", "SkuPriceDetails", "CapacityReservationId", "ServiceSubcategory", "CommitmentDiscountQuantity"),
    ),
)
"""The newest version first, with columns that came with it."""


def version_of(header: Collection[str]) -> str:
    """Return the oldest version of FOCUS that has all of this header's standard columns."""
    found = {_header(name) for name in header}
    for version, names in _SINCE:
        if found & {_header(name) for name in names}:
            return version
    return "1.0"
